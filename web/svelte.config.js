import adapter from '@sveltejs/adapter-static';
import { vitePreprocess } from '@sveltejs/vite-plugin-svelte';

/** @type {import('@sveltejs/kit').Config} */
export default {
	preprocess: vitePreprocess(),
	compilerOptions: { runes: true },
	kit: {
		adapter: adapter({ pages: 'dist', assets: 'dist', fallback: 'index.html', precompress: true }),
		alias: { $ui: 'src/lib/ui', $api: 'src/lib/api' },
		// The one inline script, which starts the app, is allowed by its hash; the
		// server's header says the rest.
		csp: { mode: 'hash', directives: { 'script-src': ['self'] } },
		output: { bundleStrategy: 'split' },
		version: { pollInterval: 0 }
	}
};
