export type Choice = 'light' | 'dark' | 'system';

const key = 'skerry:theme';

/** Light or dark: the system's, unless one was chosen. */
class Theme {
	choice = $state<Choice>(read());
	#system = matchMedia('(prefers-color-scheme: dark)');
	#dark = $state(this.#system.matches);

	constructor() {
		this.#system.addEventListener('change', (e) => {
			this.#dark = e.matches;
			this.#paint();
		});
	}

	get dark(): boolean {
		return this.choice === 'system' ? this.#dark : this.choice === 'dark';
	}

	choose(choice: Choice): void {
		this.choice = choice;
		if (choice === 'system') localStorage.removeItem(key);
		else localStorage.setItem(key, choice);
		this.#paint();
	}

	#paint(): void {
		document.documentElement.dataset.theme = this.dark ? 'dark' : 'light';
	}
}

function read(): Choice {
	const kept = localStorage.getItem(key);
	return kept === 'light' || kept === 'dark' ? kept : 'system';
}

export const theme = new Theme();
