/**
 * Runs code that writes style sheets as elements, which the page's policy forbids:
 * while it runs, elements named style are stand-ins for sheets that the document
 * adopts. Gives what takes the sheets out again.
 */
export function adopting(document: Document, act: () => void): () => void {
	const mine = new Set<CSSStyleSheet>();
	const without = (gone: Set<CSSStyleSheet>) => document.adoptedStyleSheets.filter((s) => !gone.has(s));
	function style(): HTMLElement {
		const sheet = new CSSStyleSheet();
		mine.add(sheet);
		document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
		// Something to be put into the tree and taken out again; it holds nothing.
		const stand = document.createElement('template');
		Object.defineProperty(stand, 'textContent', { get: () => '', set: (text: string) => sheet.replaceSync(text ?? '') });
		Object.defineProperty(stand, 'sheet', { get: () => sheet });
		const remove = stand.remove.bind(stand);
		stand.remove = () => {
			mine.delete(sheet);
			document.adoptedStyleSheets = without(new Set([sheet]));
			remove();
		};
		return stand;
	}
	const create = document.createElement.bind(document) as (tag: string, options?: ElementCreationOptions) => HTMLElement;
	// The document's own, which hides its prototype's until it is deleted.
	Object.defineProperty(document, 'createElement', {
		configurable: true,
		value: (tag: string, options?: ElementCreationOptions) => (tag === 'style' ? style() : create(tag, options))
	});
	try {
		act();
	} finally {
		Reflect.deleteProperty(document, 'createElement');
	}
	return () => {
		document.adoptedStyleSheets = without(mine);
		mine.clear();
	};
}
