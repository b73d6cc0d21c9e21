import { credential } from '$api/client';
import { session } from '$lib/session/session.svelte';
import { Hub, type Heard, type Said } from './hub';
import { reset, type Change } from './stream';

export type { Change } from './stream';

type Listener = (changes: Change[]) => void;

/**
 * What changes, as the server sends it: one stream for all tabs of the browser that
 * look at the same. After a gap that cannot be filled everyone is told of a change of
 * everything ("reset").
 */
class Events {
	/** Whether the stream is open; pages say so when it is not. */
	online = $state(false);

	#listeners = new Set<Listener>();
	#port: MessagePort | null = null;
	#open: { key: string; path: string; refused: () => void } | null = null;
	#unread: Change[] | null = null;

	constructor() {
		document.addEventListener('visibilitychange', () => this.#pass());
		// Nobody tells the others that a tab is gone but itself.
		addEventListener('pagehide', () => this.#say({ is: 'close' }));
		addEventListener('pageshow', (e) => {
			if (!e.persisted || !this.#open) return;
			this.#begin();
			this.#take([reset]);
		});
	}

	/**
	 * Begins to listen to a stream as who; key is another for another user or team.
	 * refused is called when it ends for good.
	 */
	open(path: string, who: string, refused: () => void): () => void {
		this.close();
		const mine = { key: `${path} ${who}`, path, refused };
		this.#open = mine;
		this.#begin();
		return () => {
			if (this.#open === mine) this.close();
		};
	}

	close(): void {
		if (this.#open) this.#say({ is: 'close' });
		this.#open = null;
		this.#unread = null;
		this.online = false;
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

	#begin(): void {
		this.#port ??= this.#connect();
		this.online = false;
		this.#unread = null;
		if (this.#open) this.#say({ is: 'open', key: this.#open.key, path: this.#open.path });
	}

	#connect(): MessagePort {
		if (typeof SharedWorker === 'undefined') return this.#alone();
		const worker = new SharedWorker(new URL('./shared.worker.ts', import.meta.url), { type: 'module', name: 'skerry' });
		worker.onerror = () => {
			// It cannot be loaded here: this tab has a stream of its own.
			if (this.#port !== worker.port) return;
			this.#port = this.#alone();
			this.#begin();
		};
		worker.port.onmessage = (e: MessageEvent<Heard>) => this.#hear(e.data);
		return worker.port;
	}

	#alone(): MessagePort {
		const { port1, port2 } = new MessageChannel();
		new Hub().connect(port1);
		port2.onmessage = (e: MessageEvent<Heard>) => this.#hear(e.data);
		return port2;
	}

	#say(said: Said): void {
		this.#port?.postMessage(said);
	}

	#hear(heard: Heard): void {
		if (!this.#open || heard.key !== this.#open.key) return;
		if (heard.is === 'ask') return void this.#answer(heard.question, heard.refused);
		if (heard.is === 'changes') return this.#take(heard.changes);
		this.online = heard.state === 'open';
		if (heard.state === 'refused') this.#open.refused();
	}

	async #answer(question: number, refused: string): Promise<void> {
		const token = await credential(refused).catch(() => '');
		// Who cannot reach the server is not logged out by that.
		this.#say({ is: 'token', question, token: token || (session.state === 'in' ? null : '') });
	}

	#take(changes: Change[]): void {
		this.#unread = [...(this.#unread ?? []), ...changes];
		this.#pass();
	}

	/** Passes on what came; to nobody while nobody looks, and then no more comes. */
	#pass(): void {
		const batch = this.#unread;
		if (document.hidden || !batch) return;
		this.#unread = null;
		this.#say({ is: 'read' });
		for (const listener of this.#listeners) listener(batch);
	}
}

export const events = new Events();
