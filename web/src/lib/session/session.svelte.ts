import { api, data, useCredentials, type Schemas, ApiError } from '$api/client';

type Auth = Schemas['AuthResponse'];

/** Renewed this long before it ends. */
const early = 60_000;

/**
 * Who is logged in. The token lives in this object alone: never in storage, in a
 * readable cookie or in an address. A reload gets another one by the httpOnly
 * cookie that only the server reads.
 */
class Session {
	/** unknown until the server was asked once. */
	state = $state<'unknown' | 'out' | 'in'>('unknown');
	user = $state<Schemas['User'] | null>(null);
	team = $state<Schemas['Team'] | null>(null);
	/** Grows with each change of user or team; what was loaded before is not shown after. */
	epoch = $state(0);

	#token = '';
	#expires = 0;
	#renewing: Promise<string> | null = null;
	#tabs = typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel('skerry:session');

	constructor() {
		useCredentials({ token: () => this.token(), renew: (refused) => this.#renewed(refused) });
		if (this.#tabs) {
			this.#tabs.onmessage = (e) => {
				if (e.data === 'out') this.#clear();
				// Another tab logged in or changed the team: the cookie is its.
				if (e.data === 'in' && this.state !== 'unknown') location.reload();
			};
		}
	}

	get canManage(): boolean {
		return this.team?.role === 'owner' || this.team?.role === 'admin';
	}

	/** Finds out who this browser is. The server says by a cookie whether there is anything to ask. */
	async open(): Promise<void> {
		if (this.state !== 'unknown') return;
		if (/(^|; )skerry_session=1(;|$)/.test(document.cookie)) await this.#renewed('');
		else this.#clear();
	}

	/** Asks again who this is: something that was allowed is refused. */
	async recheck(): Promise<void> {
		if (this.state === 'in') await this.#renewed(this.#token).catch(() => ''); // it stays as it was
	}

	async token(): Promise<string> {
		if (this.state !== 'in') return '';
		if (Date.now() < this.#expires - early) return this.#token;
		return this.#renewed(this.#token);
	}

	take(auth: Auth, tell = true): void {
		const same = this.user?.id === auth.user.id && this.team?.id === auth.team?.id;
		this.#token = auth.token;
		this.#expires = Date.parse(auth.expires_at);
		// What is the same stays the same object: what is read for it is not read again
		// by every renewal, which may come of a reading.
		if (JSON.stringify(auth.user) !== JSON.stringify(this.user)) this.user = auth.user;
		if (JSON.stringify(auth.team) !== JSON.stringify(this.team)) this.team = auth.team;
		this.state = 'in';
		if (!same) {
			this.epoch++;
			if (tell) this.#tabs?.postMessage('in');
		}
	}

	/** Takes what the list of teams says of the one that is worked in: its name, the role, whether it has hosts of its own. */
	know(teams: readonly Schemas['Team'][]): void {
		const now = teams.find((t) => t.id === this.team?.id);
		if (now && JSON.stringify(now) !== JSON.stringify(this.team)) this.team = now;
	}

	async login(email: string, password: string): Promise<void> {
		this.take(await data(api.POST('/v1/auth/login', { body: { email, password } })));
	}

	async switchTeam(team: string): Promise<void> {
		this.take(await data(api.POST('/v1/auth/switch-team', { body: { team_id: team } })));
	}

	/** Ends the session; where the server cannot be told, it goes on, and so does its cookie. */
	async logout(): Promise<void> {
		try {
			await api.POST('/v1/auth/logout', {});
		} catch (e) {
			if (!(e instanceof ApiError && e.status === 401)) throw e;
		}
		this.#tabs?.postMessage('out');
		this.#clear();
	}

	/** One renewal at a time, whoever asks. Empty when the session is over. */
	#renewed(refused: string): Promise<string> {
		if (refused !== this.#token && this.#token) return Promise.resolve(this.#token);
		this.#renewing ??= this.#renew().finally(() => (this.#renewing = null));
		return this.#renewing;
	}

	async #renew(): Promise<string> {
		const before = this.epoch;
		const response = await fetch('/v1/auth/refresh', { method: 'POST', headers: { 'X-Skerry-Refresh': '1' } }).catch(() => null);
		const renewed = response?.ok ? ((await response.json()) as Auth) : null;
		if (before !== this.epoch) return this.#token; // logged out, or in another team meanwhile
		if (renewed) {
			this.take(renewed, false);
			return this.#token;
		}
		if (response && response.status < 500 && response.status !== 429) {
			this.#clear();
			return '';
		}
		if (this.state === 'unknown') throw new ApiError(response?.status ?? 0, 'offline', 'Skerry cannot be reached.');
		return Date.now() < this.#expires ? this.#token : '';
	}

	#clear(): void {
		this.#token = '';
		this.#expires = 0;
		this.user = null;
		this.team = null;
		this.state = 'out';
		this.epoch++;
	}
}

export const session = new Session();
