import { authorized } from '$api/client';

/** One change: what kind of thing happened to which object. */
export interface Change {
	kind: string;
	resource: string;
}

type Listener = (changes: Change[]) => void;

/** Changes that come close together are told together. */
const gather = 80;
const most = 500;
const firstPause = 500;
const longestPause = 15_000;

/**
 * What changes in the team, as the server sends it. Where the stream is cut it is
 * opened again from the last event; after a gap that cannot be filled everyone is
 * told of a change of everything ("reset").
 */
class Events {
	/** Whether the stream is open; pages say so when it is not. */
	online = $state(false);

	#listeners = new Set<Listener>();
	#stop: AbortController | null = null;
	#last = '';
	#waiting: Change[] = [];
	#timer: ReturnType<typeof setTimeout> | undefined;

	constructor() {
		document.addEventListener('visibilitychange', () => this.#pass());
	}

	/** Begins to listen for the session that is there now. */
	open(): () => void {
		this.close();
		const stop = new AbortController();
		this.#stop = stop;
		this.#last = '';
		void this.#run(stop.signal);
		return () => {
			if (this.#stop === stop) this.close();
		};
	}

	close(): void {
		this.#stop?.abort();
		this.#stop = null;
		this.online = false;
		this.#waiting = [];
		clearTimeout(this.#timer);
		this.#timer = undefined; // or nothing would be told any more
	}

	/** Calls fn with each batch of changes whose kind begins with one of the prefixes. */
	on(prefixes: readonly string[], fn: Listener): () => void {
		const listener: Listener = (changes) => {
			const mine = changes.filter((c) => c.kind === 'reset' || prefixes.some((p) => c.kind.startsWith(p)));
			if (mine.length) fn(mine);
		};
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	async #run(signal: AbortSignal): Promise<void> {
		let pause = firstPause;
		let again = false;
		while (!signal.aborted) {
			try {
				const response = await authorized('/v1/events', {
					signal,
					headers: { Accept: 'text/event-stream', ...(this.#last ? { 'Last-Event-ID': this.#last } : {}) }
				});
				if (response.status === 401 || response.status === 403) return;
				if (response.ok && response.body) {
					this.online = true;
					pause = firstPause;
					// Nobody knows what changed while no stream was open.
					if (again && !this.#last) this.#tell({ kind: 'reset', resource: '' });
					again = true;
					await this.#read(response.body, signal);
				}
			} catch {
				// cut: opened again below
			}
			this.online = false;
			if (signal.aborted) return;
			await new Promise((done) => setTimeout(done, pause * (0.75 + Math.random() / 2)));
			pause = Math.min(pause * 2, longestPause);
			again = true;
		}
	}

	async #read(body: ReadableStream<Uint8Array>, signal: AbortSignal): Promise<void> {
		const reader = body.getReader();
		const decoder = new TextDecoder();
		let rest = '';
		while (!signal.aborted) {
			const { value, done } = await reader.read();
			if (done) return;
			rest += decoder.decode(value, { stream: true });
			const blocks = rest.split('\n\n');
			rest = blocks.pop() ?? '';
			for (const block of blocks) this.#take(block);
		}
	}

	#take(block: string): void {
		let event = '';
		let text = '';
		for (const line of block.split('\n')) {
			if (line.startsWith('id:')) this.#last = line.slice(3).trim();
			else if (line.startsWith('event:')) event = line.slice(6).trim();
			else if (line.startsWith('data:')) text += line.slice(5);
		}
		if (!event) return;
		let resource = '';
		try {
			resource = (JSON.parse(text) as { resource?: string }).resource ?? '';
		} catch {
			// an event without an object
		}
		this.#tell({ kind: event, resource });
	}

	#tell(change: Change): void {
		this.#waiting.push(change);
		// So many at once, or while nobody looked: everything may have changed.
		if (this.#waiting.length > most) this.#waiting = [{ kind: 'reset', resource: '' }];
		this.#timer ??= setTimeout(() => this.#pass(), gather);
	}

	/** Passes on what came; to nobody while nobody looks. */
	#pass(): void {
		this.#timer = undefined;
		if (document.hidden || !this.#waiting.length) return;
		const batch = this.#waiting;
		this.#waiting = [];
		for (const listener of this.#listeners) listener(batch);
	}
}

export const events = new Events();
