import { ApiError } from '$api/client';
import { events } from './events.svelte';

/** Changes in a flood are read this often, in milliseconds. */
const rest = 400;

/**
 * One thing that a page shows: loading, there, or failed. What is there stays
 * shown while it is read anew, and when that fails.
 */
export class Resource<T> {
	value = $state.raw<T | undefined>(undefined);
	error = $state.raw<ApiError | null>(null);
	loading = $state(true);

	#load: (signal: AbortSignal) => Promise<T>;
	#running: AbortController | null = null;
	#again = false;
	#began = -rest; // when it was last read, by performance.now
	#timer: ReturnType<typeof setTimeout> | undefined;

	/**
	 * Reads at once, again whenever a change of one of the kinds comes, and anew when
	 * what load depends on changes. Must be made while a component initialises; it
	 * ends with it.
	 */
	constructor(load: (signal: AbortSignal) => Promise<T>, kinds: readonly string[] = [], concerns?: (resource: string) => boolean) {
		this.#load = load;
		$effect(() => {
			void this.#read();
			return () => this.#running?.abort();
		});
		$effect(() => {
			const deaf = events.on(kinds, (changes) => {
				if (!concerns || changes.some((c) => c.kind === 'reset' || concerns(c.resource))) this.#changed();
			});
			return () => {
				deaf();
				clearTimeout(this.#timer);
				this.#timer = undefined;
			};
		});
	}

	#changed(): void {
		const wait = this.#began + rest - performance.now();
		if (wait <= 0) void this.refresh();
		else
			this.#timer ??= setTimeout(() => {
				this.#timer = undefined;
				void this.refresh();
			}, wait);
	}

	/** Reads anew; calls that come while it reads make one more reading, not many. */
	async refresh(): Promise<void> {
		if (this.#running) {
			this.#again = true;
			return;
		}
		await this.#read();
	}

	async #read(): Promise<void> {
		const mine = new AbortController();
		this.#running = mine;
		this.#began = performance.now();
		try {
			const value = await this.#load(mine.signal);
			if (mine.signal.aborted) return;
			this.value = value;
			this.error = null;
		} catch (e) {
			if (mine.signal.aborted) return;
			this.error = e instanceof ApiError ? e : new ApiError(0, 'unexpected', e instanceof Error ? e.message : String(e));
		}
		this.loading = false;
		this.#running = null;
		if (this.#again) {
			this.#again = false;
			await this.#read();
		}
	}
}
