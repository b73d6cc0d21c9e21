/**
 * A document for code that writes style sheets as elements, which the page's policy
 * forbids: elements named style become sheets that the document adopts. Everything
 * else is the document itself.
 */
export function adopting(real: Document): { document: Document; drop: () => void } {
	const mine = new Set<CSSStyleSheet>();
	const adopt = () => {
		const others = real.adoptedStyleSheets.filter((s) => !mine.has(s));
		real.adoptedStyleSheets = [...others, ...mine];
	};
	function style(): HTMLElement {
		const sheet = new CSSStyleSheet();
		mine.add(sheet);
		adopt();
		// Something to be put into the tree and taken out again; it holds nothing.
		const stand = real.createElement('template');
		Object.defineProperty(stand, 'textContent', { get: () => '', set: (text: string) => sheet.replaceSync(text ?? '') });
		Object.defineProperty(stand, 'sheet', { get: () => sheet });
		const remove = stand.remove.bind(stand);
		stand.remove = () => {
			mine.delete(sheet);
			real.adoptedStyleSheets = real.adoptedStyleSheets.filter((s) => s !== sheet);
			remove();
		};
		return stand;
	}
	const document = new Proxy(real, {
		get(target, name) {
			if (name === 'createElement') return (tag: string, options?: ElementCreationOptions) => (tag === 'style' ? style() : target.createElement(tag, options));
			const value: unknown = Reflect.get(target, name, target);
			return typeof value === 'function' ? value.bind(target) : value;
		}
	});
	return {
		document,
		drop: () => {
			real.adoptedStyleSheets = real.adoptedStyleSheets.filter((s) => !mine.has(s));
			mine.clear();
		}
	};
}
