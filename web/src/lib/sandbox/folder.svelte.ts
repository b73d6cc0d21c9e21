import { untrack } from 'svelte';
import { api, ApiError, data, type Schemas } from '$api/client';
import type { Source } from '$ui/Virtual.svelte';

export type Entry = Schemas['FileEntry'];

/** Folders of up to this many entries are read whole, and sorted with folders first. */
const whole = 1_000;
/** How far it is read ahead of what is seen. */
const ahead = 600;
/** More entries of one folder than this are not held. */
export const most = 50_000;

const order = new Intl.Collator(undefined, { numeric: true, sensitivity: 'base' });

/**
 * What is in a folder. A small one is read whole: folders first, then by name. Of a
 * large one, in the order of the API, as much as somebody scrolls to.
 * Must be made while a component initialises; it ends with it.
 */
export class FolderList implements Source<Entry> {
	known = $state(false);
	loading = $state(true);
	error = $state.raw<ApiError | null>(null);
	/** Only what has this in its name is shown; for that all of it is read. */
	filter = $state('');
	readonly key = (e: Entry) => e.path;

	#items = $state.raw<readonly Entry[]>([]);
	#cursor = $state<string | undefined>(undefined);
	#shown = $derived.by(() => {
		const wanted = this.filter.toLowerCase();
		return wanted ? this.#items.filter((e) => e.name.toLowerCase().includes(wanted)) : this.#items;
	});
	#to = 0;
	#stop = new AbortController();
	#where: () => { sandbox: string; path: string };

	constructor(where: () => { sandbox: string; path: string }) {
		this.#where = where;
		$effect(() => {
			where();
			untrack(() => {
				this.known = false;
				this.filter = '';
				this.#to = 0;
				void this.refresh();
			});
			return () => this.#stop.abort();
		});
	}

	get count(): number {
		return this.#shown.length;
	}
	/** How many are known, whatever the filter. */
	get total(): number {
		return this.#items.length;
	}
	get more(): boolean {
		return this.#cursor !== undefined && this.#items.length < most;
	}
	at(index: number): Entry | undefined {
		return this.#shown[index];
	}
	find(name: string): Entry | undefined {
		return this.#items.find((e) => e.name === name);
	}
	want(_: number, to: number): void {
		this.#to = to;
		if (this.known && !this.loading && !this.error && this.#due(this.#items.length)) void this.#go(() => this.#read([...this.#items], this.#cursor, this.#stop.signal));
	}

	/** Reads it anew, as far as it was read; what is there stays until then. */
	refresh(): Promise<void> {
		this.#stop.abort();
		this.#stop = new AbortController();
		const { signal } = this.#stop;
		return this.#go(() => this.#read([], undefined, signal));
	}

	#due(read: number): boolean {
		return this.more && (read < whole || this.filter !== '' || read < this.#to + ahead);
	}

	async #go(act: () => Promise<void>): Promise<void> {
		const { signal } = this.#stop;
		this.loading = true;
		try {
			await act();
			if (!signal.aborted) this.error = null;
		} catch (e) {
			if (!signal.aborted) this.error = e instanceof ApiError ? e : new ApiError(0, 'unexpected', e instanceof Error ? e.message : String(e));
		} finally {
			if (!signal.aborted) this.loading = false;
		}
	}

	async #read(read: Entry[], from: string | undefined, signal: AbortSignal): Promise<void> {
		const { sandbox, path } = this.#where();
		const quiet = this.known && !from; // a reading anew is shown when it is done
		const before = quiet ? this.#items.length : 0;
		let cursor = from;
		do {
			const got = await data(api.GET('/v1/sandboxes/{id}/files/list', { params: { path: { id: sandbox }, query: { path, cursor, limit: 200 } }, signal }));
			if (signal.aborted) return;
			read.push(...got.items);
			cursor = got.next_cursor;
			if (cursor && quiet && read.length < before) continue;
			this.#cursor = cursor;
			this.#items = cursor || read.length > whole ? [...read] : [...read].sort((a, b) => Number(b.type === 'directory') - Number(a.type === 'directory') || order.compare(a.name, b.name));
			this.known = true;
		} while (cursor && ((quiet && read.length < before) || this.#due(read.length)));
	}
}
