import { sveltekit } from '@sveltejs/kit/vite';
import tailwindcss from '@tailwindcss/vite';
import { defineConfig, type Plugin } from 'vite';

// `vite dev` speaks to a server that runs on this machine.
const api = process.env.SKERRY_URL ?? 'http://127.0.0.1:7070';

/** SvelteKit hides what it tells screen readers by a style attribute, which the page's policy forbids; app.css hides it. */
const announcer: Plugin = {
	name: 'skerry:announcer',
	enforce: 'pre',
	transform: (code, id) => (id.endsWith('generated/root.svelte') ? code.replace(/(id="svelte-announcer"[^>]*?)\s+style="[^"]*"/, '$1') : null)
};

/** bits-ui has style attributes in its markup; a class says the same. */
const contents: Plugin = {
	name: 'skerry:contents',
	enforce: 'pre',
	transform: (code, id) => (id.includes('/bits-ui/') && id.endsWith('.svelte') ? code.replaceAll('style="display: contents;"', 'class="contents"') : null)
};

export default defineConfig({
	plugins: [announcer, contents, tailwindcss(), sveltekit()],
	build: { target: 'es2022', chunkSizeWarningLimit: 400, assetsInlineLimit: 0 },
	server: { proxy: { '/v1': { target: api, ws: true, headers: { origin: api } } } },
	preview: { proxy: { '/v1': { target: api, ws: true, headers: { origin: api } } } }
});
