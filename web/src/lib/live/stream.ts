/** One change: what kind of thing happened to which object. */
export interface Change {
	kind: string;
	resource: string;
}

/** After this everything may be another. */
export const reset: Change = { kind: 'reset', resource: '' };

/** cut: it is opened again; refused: it is not. */
export type State = 'open' | 'cut' | 'refused';

/** Gives a token that is good now, or, when one was refused, another; empty for nobody. */
export type Tokens = (refused: string) => Promise<string>;

const firstPause = 500;
const longestPause = 15_000;

/**
 * A stream of the server's, open until it is closed or refused. Where it is cut it is
 * opened again from the last event; a gap that cannot be filled is told as a reset.
 */
export class Stream {
	#path: string;
	#tokens: Tokens;
	#tell: (change: Change) => void;
	#is: (state: State) => void;
	#stop = new AbortController();
	#last = '';

	constructor(path: string, tokens: Tokens, tell: (change: Change) => void, is: (state: State) => void) {
		this.#path = path;
		this.#tokens = tokens;
		this.#tell = tell;
		this.#is = is;
		void this.#run(this.#stop.signal);
	}

	close(): void {
		this.#stop.abort();
	}

	async #run(signal: AbortSignal): Promise<void> {
		let pause = firstPause;
		let again = false;
		while (!signal.aborted) {
			try {
				const response = await this.#open(signal);
				if (signal.aborted) return;
				if (!response) return this.#is('refused');
				if (response.ok && response.body) {
					this.#is('open');
					pause = firstPause;
					// Nobody knows what changed while no stream was open.
					if (again && !this.#last) this.#tell(reset);
					again = true;
					await this.#read(response.body, signal);
				}
			} catch {
				// cut: opened again below
			}
			if (signal.aborted) return;
			this.#is('cut');
			await new Promise((done) => setTimeout(done, pause * (0.75 + Math.random() / 2)));
			pause = Math.min(pause * 2, longestPause);
			again = true;
		}
	}

	/** The server's answer; null when it refuses whoever asks. */
	async #open(signal: AbortSignal): Promise<Response | null> {
		let token = '';
		for (let n = 0; n < 2; n++) {
			token = await this.#tokens(token);
			if (!token || signal.aborted) return null;
			const headers = { Accept: 'text/event-stream', Authorization: `Bearer ${token}`, ...(this.#last ? { 'Last-Event-ID': this.#last } : {}) };
			const response = await fetch(this.#path, { signal, headers });
			if (response.status === 403) return null;
			if (response.status !== 401) return response;
		}
		return null;
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
		let kind = '';
		let text = '';
		for (const line of block.split('\n')) {
			if (line.startsWith('id:')) this.#last = line.slice(3).trim();
			else if (line.startsWith('event:')) kind = line.slice(6).trim();
			else if (line.startsWith('data:')) text += line.slice(5);
		}
		if (!kind) return;
		let resource = '';
		try {
			resource = (JSON.parse(text) as { resource?: string }).resource ?? '';
		} catch {
			// an event without an object
		}
		this.#tell({ kind, resource });
	}
}
