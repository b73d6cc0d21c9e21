import { untrack } from 'svelte';
import { ApiError } from '$api/client';
import { events } from './events.svelte';

interface Answer<T> {
	readonly items: readonly T[];
	readonly next_cursor?: string;
}

/** One page: where it begins, and what was there when it was read last. */
interface Page<T> {
	cursor: string | undefined;
	/** null: not read yet, or dropped because it is far from what is seen. */
	items: readonly T[] | null;
	/** How many there were, also of one that was dropped; 0 when it was never read. */
	count: number;
	stale: boolean;
}

/** Pages further than this from what is seen are dropped, and read again on the way back. */
const kept = 4;
/** Rows that are read ahead of what is seen. */
const ahead = 40;
/** Changes in a flood are read this often, in milliseconds. */
const rest = 400;

/**
 * A list that is read page by page as somebody scrolls, of any length: what is far
 * from the eye is forgotten. After a change only what is near the eye is read anew.
 * Must be made while a component initialises; it ends with it.
 */
export class Pages<T> {
	readonly key: (item: T) => string;
	error = $state.raw<ApiError | null>(null);
	loading = $state(true);
	/** Whether anything was ever read. */
	known = $state(false);
	/** What came in at the head while somebody looked. */
	fresh = $state.raw<ReadonlySet<string>>(new Set());
	/** Something changed above what is seen. */
	newer = $state(false);

	#load: (cursor: string | undefined, signal: AbortSignal) => Promise<Answer<T>>;
	#pages: Page<T>[] = [];
	#starts: number[] = [];
	#version = $state(0);
	#from = 0;
	#to = 0;
	#stop = new AbortController();
	#pump: Promise<void> | null = null;
	#timer: ReturnType<typeof setTimeout> | undefined;
	#read = 0; // when a change was last read, by performance.now

	constructor(
		load: (cursor: string | undefined, signal: AbortSignal) => Promise<Answer<T>>,
		kinds: readonly string[] = [],
		key: (item: T) => string = (x) => (x as { id: string }).id
	) {
		this.#load = load;
		this.key = key;
		$effect(() => {
			// What load depends on is read here; another filter is another list.
			const stop = new AbortController();
			const first = load(undefined, stop.signal);
			untrack(() => this.#begin(first, stop));
			return () => {
				stop.abort();
				clearTimeout(this.#timer);
				this.#timer = undefined;
			};
		});
		if (kinds.length) $effect(() => events.on(kinds, () => this.#changed()));
	}

	/** How many there are as far as was read. */
	get count(): number {
		void this.#version;
		const last = this.#pages.length - 1;
		return last < 0 ? 0 : (this.#starts[last] ?? 0) + (this.#pages[last]?.count ?? 0);
	}
	/** Whether there are more behind those. */
	get more(): boolean {
		void this.#version;
		const last = this.#pages.at(-1);
		return this.#pages.length > 1 && last?.items === null && last.count === 0;
	}
	/** All that is held now: of a short list, all. */
	get items(): T[] {
		void this.#version;
		return this.#pages.flatMap((p) => p.items ?? []);
	}

	/** The item at a place; undefined while it is being read. */
	at(index: number): T | undefined {
		void this.#version;
		const n = this.#pageOf(index);
		return this.#pages[n]?.items?.[index - (this.#starts[n] ?? 0)];
	}

	/** Says what is seen: it is read, what is far is dropped. */
	want(from: number, to: number): void {
		this.#from = from;
		this.#to = to;
		if (from === 0) this.newer = false;
		void this.#go();
	}

	/** Reads what is seen anew. */
	async refresh(): Promise<void> {
		for (const p of this.#pages) p.stale = true;
		if (!this.#pages.length) this.#pages = [{ cursor: undefined, items: null, count: 0, stale: true }];
		this.#read = performance.now();
		await this.#go();
	}

	/** Reads one page more. */
	next(): void {
		if (this.more) this.want(this.#from, this.count + 1);
	}

	#changed(): void {
		if (this.#from > 0) this.newer = true;
		const wait = this.#read + rest - performance.now();
		if (wait <= 0) void this.refresh();
		else
			this.#timer ??= setTimeout(() => {
				this.#timer = undefined;
				void this.refresh();
			}, wait);
	}

	#begin(first: Promise<Answer<T>>, stop: AbortController): void {
		this.#stop = stop;
		this.#pump = null;
		this.loading = true;
		this.#read = performance.now();
		const task = first
			.then((got) => {
				if (stop.signal.aborted) return;
				this.#pages = [{ cursor: undefined, items: null, count: 0, stale: true }];
				this.#from = 0;
				this.#to = Math.min(this.#to, ahead);
				this.newer = false;
				this.#apply(0, got);
				this.fresh = new Set();
				this.error = null;
			})
			.catch((e: unknown) => {
				if (!stop.signal.aborted) this.#pages = [];
				this.#failed(e, stop.signal);
			})
			.finally(() => {
				if (this.#pump !== task) return;
				this.loading = false;
				this.#pump = null;
				if (!this.error) void this.#go();
			});
		this.#pump = task;
	}

	/** Reads what is wanted, one page after the other, until all of it is there. */
	#go(): Promise<void> {
		if (this.#pump) return this.#pump;
		const task = this.#run(this.#stop.signal).finally(() => {
			if (this.#pump === task) this.#pump = null;
		});
		this.#pump = task;
		return task;
	}

	async #run(signal: AbortSignal): Promise<void> {
		await Promise.resolve(); // never within what asked
		for (let n = this.#wanted(); n >= 0 && !signal.aborted; n = this.#wanted()) {
			const page = this.#pages[n];
			if (!page) return;
			page.stale = false; // a change while it is read makes it stale again
			this.loading = true;
			try {
				const got = await this.#load(page.cursor, signal);
				if (signal.aborted) return;
				if (this.#pages[n] === page) this.#apply(n, got);
				this.error = null;
			} catch (e) {
				page.stale = true;
				this.#failed(e, signal);
				return;
			} finally {
				if (!signal.aborted) this.loading = false;
			}
		}
	}

	#failed(e: unknown, signal: AbortSignal): void {
		if (signal.aborted) return;
		this.error = e instanceof ApiError ? e : new ApiError(0, 'unexpected', e instanceof Error ? e.message : String(e));
		this.loading = false;
	}

	/** The first page that is to be read for what is seen; -1 when all of it is there. */
	#wanted(): number {
		const to = this.#to + ahead;
		for (let n = this.#pageOf(Math.max(0, this.#from - ahead)); n < this.#pages.length; n++) {
			const page = this.#pages[n];
			if (!page || (this.#starts[n] ?? 0) > to) return -1;
			if (page.stale || !page.items) return n;
		}
		return -1;
	}

	#apply(n: number, got: Answer<T>): void {
		const page = this.#pages[n];
		if (!page) return;
		if (n === 0 && page.items?.length) {
			const before = new Set(page.items.map(this.key));
			const keys = got.items.map(this.key);
			const first = keys.findIndex((k) => before.has(k));
			if (first > 0) this.fresh = new Set(keys.slice(0, first));
		}
		page.items = got.items;
		page.count = got.items.length;
		page.stale = false;
		const next = this.#pages[n + 1];
		if (!got.next_cursor) this.#pages.length = n + 1;
		else if (!next) this.#pages.push({ cursor: got.next_cursor, items: null, count: 0, stale: true });
		else if (next.cursor !== got.next_cursor) this.#pages[n + 1] = { ...next, cursor: got.next_cursor, stale: true };
		this.#forget();
		let start = 0;
		this.#starts = this.#pages.map((p) => (start += p.count) - p.count);
		this.known = true;
		this.#version++;
	}

	#forget(): void {
		const first = this.#pageOf(this.#from) - kept;
		const last = this.#pageOf(this.#to) + kept;
		this.#pages.forEach((p, n) => {
			if ((n < first || n > last) && p.count) p.items = null;
		});
	}

	#pageOf(index: number): number {
		let low = 0;
		let high = this.#starts.length - 1;
		while (low < high) {
			const middle = (low + high + 1) >> 1;
			if ((this.#starts[middle] ?? 0) <= index) low = middle;
			else high = middle - 1;
		}
		return Math.max(0, low);
	}
}
