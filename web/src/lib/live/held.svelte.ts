import type { Source } from '$ui/Virtual.svelte';

/** A list that is there as a whole, for a table that draws what is seen of it. */
export class Held<T> implements Source<T> {
	readonly more = false;
	#items: () => readonly T[];

	constructor(
		items: () => readonly T[],
		readonly key: (item: T) => string
	) {
		this.#items = items;
	}

	get count(): number {
		return this.#items().length;
	}
	at(index: number): T | undefined {
		return this.#items()[index];
	}
	want(): void {
		// all of it is there
	}
}
