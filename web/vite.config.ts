import { sveltekit } from '@sveltejs/kit/vite';
import tailwindcss from '@tailwindcss/vite';
import { defineConfig } from 'vite';

// `vite dev` speaks to a server that runs on this machine.
const api = process.env.SKERRY_URL ?? 'http://127.0.0.1:7070';

export default defineConfig({
	plugins: [tailwindcss(), sveltekit()],
	build: { target: 'es2022', chunkSizeWarningLimit: 400, assetsInlineLimit: 0 },
	server: { proxy: { '/v1': { target: api, ws: true, headers: { origin: api } } } },
	preview: { proxy: { '/v1': { target: api, ws: true, headers: { origin: api } } } }
});
