import { ApiError } from '$api/client';

export interface Toast {
	id: number;
	tone: 'ok' | 'bad';
	text: string;
}

const shown = { ok: 4_000, bad: 9_000 };

/** Short words about what was just done. */
class Toasts {
	list = $state<Toast[]>([]);
	#next = 0;

	ok(text: string): void {
		this.#add('ok', text);
	}

	/** What failed, in the API's own words. */
	fail(e: unknown): void {
		this.#add('bad', e instanceof ApiError || e instanceof Error ? e.message : String(e));
	}

	drop(id: number): void {
		this.list = this.list.filter((t) => t.id !== id);
	}

	#add(tone: Toast['tone'], text: string): void {
		const id = this.#next++;
		this.list = [...this.list.slice(-3), { id, tone, text }];
		setTimeout(() => this.drop(id), shown[tone]);
	}
}

export const toasts = new Toasts();
