import { reset, Stream, type Change, type State } from './stream';

/** What a tab says. */
export type Said =
	| { is: 'open'; key: string; path: string }
	| { is: 'close' }
	/** The changes that came last are passed on. */
	| { is: 'read' }
	/** Empty for nobody; null when there is none just now. */
	| { is: 'token'; question: number; token: string | null };

/** What a tab hears. */
export type Heard =
	| { is: 'state'; key: string; state: State }
	| { is: 'changes'; key: string; changes: Change[] }
	/** A token is needed; refused is the one that was no good, or empty. */
	| { is: 'ask'; key: string; question: number; refused: string };

/** Changes that come close together are told together. */
const gather = 80;
/** A tab that is told of more at once is told that everything may be another. */
const most = 500;
/** How long a tab may take to give a token; then another is asked. */
const answer = 5_000;

/** A stream, and the tabs that hear it. */
interface Channel {
	stream: Stream;
	state: State;
	tabs: Set<Tab>;
}

/** A tab: what waits for it is bounded, however long it does not read. */
class Tab {
	channel: string | null = null;
	#port: MessagePort;
	#waiting: Change[] = [];
	#timer: ReturnType<typeof setTimeout> | undefined;
	#reading = false;

	constructor(port: MessagePort) {
		this.#port = port;
	}

	say(heard: Heard): void {
		this.#port.postMessage(heard);
	}

	tell(change: Change): void {
		this.#waiting.push(change);
		if (this.#waiting.length > most) this.#waiting = [reset];
		this.#timer ??= setTimeout(() => {
			this.#timer = undefined;
			this.#pass();
		}, gather);
	}

	read(): void {
		this.#reading = false;
		this.#timer ?? this.#pass();
	}

	forget(): void {
		this.channel = null;
		this.#waiting = [];
		this.#reading = false;
		clearTimeout(this.#timer);
		this.#timer = undefined;
	}

	#pass(): void {
		if (this.#reading || !this.channel || !this.#waiting.length) return;
		this.#reading = true;
		this.say({ is: 'changes', key: this.channel, changes: this.#waiting });
		this.#waiting = [];
	}
}

/**
 * Holds one stream for all tabs of a browser that want the same: a browser has six
 * connections to a server, and each stream takes one for as long as it is open. It
 * keeps no token: when it needs one it asks a tab.
 */
export class Hub {
	#channels = new Map<string, Channel>();
	#questions = new Map<number, (token: string | null) => void>();
	#asked = 0;

	/** Hears what a tab says by its port. */
	connect(port: MessagePort): void {
		const tab = new Tab(port);
		port.onmessage = ({ data: said }: MessageEvent<Said>) => {
			if (said.is === 'open') this.#open(tab, said.key, said.path);
			else if (said.is === 'close') this.#close(tab);
			else if (said.is === 'read') tab.read();
			else this.#questions.get(said.question)?.(said.token);
		};
	}

	#open(tab: Tab, key: string, path: string): void {
		this.#close(tab);
		tab.channel = key;
		const there = this.#channels.get(key);
		if (there) {
			there.tabs.add(tab);
			if (there.state === 'open') tab.say({ is: 'state', key, state: 'open' });
			return;
		}
		const tabs = new Set([tab]);
		const stream = new Stream(
			path,
			(refused) => this.#ask(key, tabs, refused),
			(change) => tabs.forEach((t) => t.tell(change)),
			(state) => {
				channel.state = state;
				for (const t of tabs) t.say({ is: 'state', key, state });
				if (state === 'refused' && this.#channels.get(key) === channel) this.#channels.delete(key);
			}
		);
		const channel: Channel = { stream, state: 'cut', tabs };
		this.#channels.set(key, channel);
	}

	#close(tab: Tab): void {
		const key = tab.channel;
		tab.forget();
		if (key === null) return;
		const channel = this.#channels.get(key);
		if (!channel?.tabs.delete(tab) || channel.tabs.size) return;
		channel.stream.close();
		this.#channels.delete(key);
	}

	/** Asks one tab after the other: they share a session, which one renews for all. */
	async #ask(key: string, tabs: Set<Tab>, refused: string): Promise<string> {
		for (const tab of [...tabs]) {
			const question = ++this.#asked;
			const token = await new Promise<string | null>((done) => {
				this.#questions.set(question, done);
				setTimeout(() => done(null), answer);
				tab.say({ is: 'ask', key, question, refused });
			});
			this.#questions.delete(question);
			if (token !== null) return token;
			if (tabs.delete(tab)) tabs.add(tab); // one that sleeps is asked last
		}
		throw new Error('no tab answers');
	}
}
