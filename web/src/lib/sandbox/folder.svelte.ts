import { untrack } from 'svelte';
import { api, ApiError, data, type Schemas } from '$api/client';

export type Entry = Schemas['FileEntry'];

/** More entries of one folder than this are not read. */
export const most = 20_000;

const order = new Intl.Collator(undefined, { numeric: true, sensitivity: 'base' });

/**
 * What is in a folder: folders first, then by name. It is read to its end, as the
 * order needs all of it; what was read is shown meanwhile.
 * Must be made while a component initialises; it ends with it.
 */
export class FolderList {
	items = $state.raw<readonly Entry[]>([]);
	known = $state(false);
	loading = $state(true);
	/** There are more than are read. */
	cut = $state(false);
	error = $state.raw<ApiError | null>(null);

	#stop = new AbortController();
	#where: () => { sandbox: string; path: string };

	constructor(where: () => { sandbox: string; path: string }) {
		this.#where = where;
		$effect(() => {
			where();
			untrack(() => {
				this.known = false;
				this.items = [];
				void this.refresh();
			});
			return () => this.#stop.abort();
		});
	}

	async refresh(): Promise<void> {
		this.#stop.abort();
		const stop = new AbortController();
		this.#stop = stop;
		this.loading = true;
		try {
			await this.#read(this.#where(), stop.signal);
			if (!stop.signal.aborted) this.error = null;
		} catch (e) {
			if (!stop.signal.aborted) this.error = e instanceof ApiError ? e : new ApiError(0, 'unexpected', e instanceof Error ? e.message : String(e));
		} finally {
			if (!stop.signal.aborted) this.loading = false;
		}
	}

	async #read({ sandbox, path }: { sandbox: string; path: string }, signal: AbortSignal): Promise<void> {
		const again = this.known; // what is there stays until all of it is read anew
		let read: Entry[] = [];
		let cursor: string | undefined;
		do {
			const got = await data(api.GET('/v1/sandboxes/{id}/files/list', { params: { path: { id: sandbox }, query: { path, cursor, limit: 200 } }, signal }));
			if (signal.aborted) return;
			read = read.concat(got.items);
			cursor = got.next_cursor;
			if (!again && (!cursor || read.length % 2_000 < 200)) this.#show(read);
		} while (cursor && read.length < most);
		this.cut = Boolean(cursor);
		this.#show(read);
	}

	#show(entries: readonly Entry[]): void {
		this.items = [...entries].sort((a, b) => Number(b.type === 'directory') - Number(a.type === 'directory') || order.compare(a.name, b.name));
		this.known = true;
	}
}
