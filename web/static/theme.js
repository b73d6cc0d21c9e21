// Before anything is painted: the theme that was chosen, or the system's.
(() => {
	const chosen = localStorage.getItem('skerry:theme');
	const dark = chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
	document.documentElement.dataset.theme = dark ? 'dark' : 'light';
})();

// A part of the app that did not come (a browser drops what is under way when a
// network of its machine changes, as the start of a sandbox there does) is asked
// for again, with the whole page; not for ever.
(() => {
	const key = 'skerry:again';
	const again = () => {
		const now = Date.now();
		const tries = (sessionStorage.getItem(key) ?? '').split(' ').filter((t) => t && now - Number(t) < 30_000);
		if (tries.length >= 6) return false;
		sessionStorage.setItem(key, [...tries, now].join(' '));
		setTimeout(() => location.reload(), 120 * (tries.length + 1));
		return true;
	};
	addEventListener('vite:preloadError', (e) => again() && e.preventDefault());
	addEventListener('unhandledrejection', (e) => /dynamically imported module|Importing a module script failed/i.test(String(e.reason?.message)) && again() && e.preventDefault());
	addEventListener('error', (e) => e.target instanceof Element && e.target.matches('script[src], link[rel="stylesheet"]') && again(), true);
})();
