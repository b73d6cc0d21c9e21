import { api, data } from '$api/client';

/** What the server says beside output. */
type Message =
	| { type: 'start'; exec_id: string }
	| { type: 'gap'; lost_bytes: number }
	| { type: 'exit'; exit_code: number; status?: string; error?: string }
	| { type: 'error'; error: { code: string; message: string } };

export interface Ended {
	exitCode?: number;
	message: string;
}

interface Handlers {
	output: (bytes: Uint8Array) => void;
	/** The line was cut, and is whole again. */
	connected: (on: boolean) => void;
	gap: (lost: number) => void;
	ended: (how: Ended) => void;
}

const subprotocol = 'skerry.exec.v1';
const header = 9; // one byte of channel, eight of offset
const firstPause = 300;
const longestPause = 8_000;

/**
 * A terminal inside a sandbox. A line that is cut is opened again, and the program
 * inside goes on; what it said meanwhile is replayed from where we were.
 */
export class Terminal {
	#socket: WebSocket | null = null;
	#exec = '';
	#offset = 0n;
	#closed = false;
	#pause = firstPause;
	#size: { cols: number; rows: number };
	#timer: ReturnType<typeof setTimeout> | undefined;

	constructor(
		readonly sandbox: string,
		size: { cols: number; rows: number },
		readonly on: Handlers
	) {
		this.#size = size;
		void this.#open();
	}

	write(bytes: Uint8Array): void {
		if (this.#socket?.readyState !== WebSocket.OPEN) return;
		const frame = new Uint8Array(bytes.length + 1); // its first byte, 0, is standard input
		frame.set(bytes, 1);
		this.#socket.send(frame);
	}

	resize(cols: number, rows: number): void {
		this.#size = { cols, rows };
		if (this.#socket?.readyState === WebSocket.OPEN && this.#exec) this.#send({ type: 'resize', cols, rows });
	}

	/** Leaves; the program inside is ended with its terminal. */
	close(): void {
		this.#closed = true;
		clearTimeout(this.#timer);
		if (this.#socket?.readyState === WebSocket.OPEN && this.#exec) this.#send({ type: 'signal', signal: 'SIGHUP' });
		this.#socket?.close(1000);
	}

	#send(message: unknown): void {
		this.#socket?.send(JSON.stringify(message));
	}

	async #open(): Promise<void> {
		let ticket: string;
		try {
			ticket = (
				await data(api.POST('/v1/sandboxes/{id}/stream-ticket', { params: { path: { id: this.sandbox } }, body: { operation: 'openPTY' } }))
			).ticket;
		} catch (e) {
			const refused = e as { status?: number; message: string };
			if (refused.status && refused.status < 500 && refused.status !== 429) return this.#end({ message: refused.message });
			return this.#again();
		}
		if (this.#closed) return;
		const url = new URL(`/v1/sandboxes/${this.sandbox}/pty`, location.href);
		url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
		url.searchParams.set('ticket', ticket);
		const socket = new WebSocket(url, subprotocol);
		socket.binaryType = 'arraybuffer';
		this.#socket = socket;
		socket.onopen = () => {
			this.#pause = firstPause;
			this.#send(this.#exec ? { attach: this.#exec, after: Number(this.#offset) } : { tty: this.#size });
			this.on.connected(true);
			if (this.#exec) this.#send({ type: 'resize', ...this.#size });
		};
		socket.onmessage = (e: MessageEvent<string | ArrayBuffer>) => (typeof e.data === 'string' ? this.#say(JSON.parse(e.data) as Message) : this.#take(e.data));
		socket.onclose = () => {
			if (this.#socket !== socket || this.#closed) return;
			this.on.connected(false);
			this.#again();
		};
	}

	#again(): void {
		if (this.#closed) return;
		this.#timer = setTimeout(() => void this.#open(), this.#pause);
		this.#pause = Math.min(this.#pause * 2, longestPause);
	}

	#take(frame: ArrayBuffer): void {
		const view = new DataView(frame);
		const bytes = new Uint8Array(frame, header);
		this.#offset = view.getBigUint64(1) + BigInt(bytes.length);
		this.on.output(bytes);
	}

	#say(message: Message): void {
		switch (message.type) {
			case 'start':
				this.#exec = message.exec_id;
				break;
			case 'gap':
				this.on.gap(message.lost_bytes);
				break;
			case 'exit':
				this.#end({ exitCode: message.exit_code, message: `The shell ended with status ${message.exit_code}.` });
				break;
			case 'error':
				this.#end({ message: message.error.message });
		}
	}

	#end(how: Ended): void {
		if (this.#closed) return;
		this.#closed = true;
		this.#socket?.close(1000);
		this.on.ended(how);
	}
}
