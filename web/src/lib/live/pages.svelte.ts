import type { ApiError } from '$api/client';
import { Resource } from './resource.svelte';

interface Page<T> {
	readonly items: readonly T[];
	readonly next_cursor?: string;
}

/**
 * A list that is read page by page as somebody scrolls. What changed is read anew
 * over all that was shown, so that an item never jumps or doubles.
 */
export class Pages<T> {
	#load: (cursor: string | undefined, signal: AbortSignal) => Promise<Page<T>>;
	#wanted = $state(1);
	#shown = 0; // items there must be before another page is asked for
	#all: Resource<{ items: T[]; more: boolean }>;

	constructor(load: (cursor: string | undefined, signal: AbortSignal) => Promise<Page<T>>, kinds: readonly string[] = []) {
		this.#load = load;
		this.#all = new Resource((signal) => this.#read(signal), kinds);
	}

	get items(): T[] {
		return this.#all.value?.items ?? [];
	}
	get more(): boolean {
		return this.#all.value?.more ?? false;
	}
	get loading(): boolean {
		return this.#all.loading;
	}
	get error(): ApiError | null {
		return this.#all.error;
	}
	/** Whether anything was ever read. */
	get known(): boolean {
		return this.#all.value !== undefined;
	}

	refresh(): Promise<void> {
		return this.#all.refresh();
	}

	/** Reads one page more. */
	next(): void {
		if (this.more && this.items.length >= this.#shown) {
			this.#shown = this.items.length + 1;
			this.#wanted++;
		}
	}

	async #read(signal: AbortSignal): Promise<{ items: T[]; more: boolean }> {
		const items: T[] = [];
		let cursor: string | undefined;
		for (let n = 0; n < this.#wanted; n++) {
			const got = await this.#load(cursor, signal);
			items.push(...got.items);
			cursor = got.next_cursor;
			if (!cursor) break;
		}
		return { items, more: Boolean(cursor) };
	}
}
