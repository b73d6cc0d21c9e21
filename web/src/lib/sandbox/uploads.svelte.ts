import { refusal, upload } from '$api/client';

export interface Upload {
	id: number;
	name: string;
	done: number;
	total: number;
	/** Bytes a second, lately. */
	rate: number;
	error: string;
	stop: AbortController;
}

/** Files on their way into a sandbox: one after the other, each can be stopped. */
export class Uploads {
	list = $state<Upload[]>([]);
	#next = 0;
	#waiting: { up: number; file: File; to: string }[] = [];
	#busy = false;

	constructor(
		readonly sandbox: () => string,
		/** Told of each that is there. */
		readonly arrived: (name: string) => unknown
	) {}

	add(files: Iterable<File>, folder: string): void {
		for (const file of files) {
			const id = this.#next++;
			this.list.push({ id, name: file.name, done: 0, total: file.size, rate: 0, error: '', stop: new AbortController() });
			this.#waiting.push({ up: id, file, to: `${folder === '/' ? '' : folder}/${file.name}` });
		}
		void this.#run();
	}

	/** Stops it; of what was sent nothing is left. */
	drop(id: number): void {
		this.list.find((u) => u.id === id)?.stop.abort();
		this.list = this.list.filter((u) => u.id !== id);
		this.#waiting = this.#waiting.filter((w) => w.up !== id);
	}

	close(): void {
		for (const u of this.list) u.stop.abort();
		this.#waiting = [];
	}

	async #run(): Promise<void> {
		if (this.#busy) return;
		this.#busy = true;
		for (let next = this.#waiting.shift(); next; next = this.#waiting.shift()) {
			const { up, file, to } = next;
			const one = this.list.find((u) => u.id === up);
			if (!one) continue;
			let at = performance.now();
			let before = 0;
			try {
				const url = `/v1/sandboxes/${this.sandbox()}/files?${new URLSearchParams({ path: to })}`;
				const response = await upload('PUT', url, file, ({ done }) => {
					const now = performance.now();
					one.done = done;
					if (now - at < 400) return;
					const rate = ((done - before) / (now - at)) * 1000;
					one.rate = one.rate ? one.rate * 0.6 + rate * 0.4 : rate;
					at = now;
					before = done;
				}, one.stop.signal);
				if (!response.ok) throw await refusal(response);
				this.list = this.list.filter((u) => u.id !== up);
				await this.arrived(file.name);
			} catch (e) {
				if (!one.stop.signal.aborted) one.error = e instanceof Error ? e.message : String(e);
			}
		}
		this.#busy = false;
	}
}
