import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';

/** How long anything may take before a test gives up: a promise is made elsewhere. */
export const patience = 20_000;

/**
 * The installation as scripts see it: its API, people, and browsers of theirs.
 * Everything that a page does wrong by itself is a fault of the script that
 * opened it: an error on the console, a request to another origin, an answer
 * that nobody expected.
 */
export class World {
	#browser;
	#play;
	#contexts = [];
	#faults = [];
	#expected = [];
	#elsewhere = [];

	constructor({ url, admin, shots, long }, browser, play) {
		this.url = url;
		this.admin = admin;
		this.shots = shots;
		this.long = long;
		this.#browser = browser;
		this.#play = play;
	}

	/** full in long runs, short otherwise. */
	scaled(full, short) {
		return this.long ? full : short;
	}

	/** Calls the API as who; an answer that is no success throws. */
	async api(who, method, path, body) {
		const response = await fetch(this.url + path, {
			method,
			headers: { ...(who ? { Authorization: `Bearer ${who.token}` } : {}), ...(body === undefined ? {} : { 'Content-Type': 'application/json' }) },
			body: body === undefined ? undefined : JSON.stringify(body)
		});
		const text = await response.text();
		if (!response.ok) throw Object.assign(new Error(`${method} ${path}: ${response.status} ${text}`), { status: response.status });
		return text ? JSON.parse(text) : undefined;
	}

	/** A new person with a team of their own. */
	async signUp(name) {
		const email = `${name.toLowerCase().replace(/[^a-z0-9]+/g, '.')}.${unique()}@example.com`;
		const password = `correct horse ${unique()}`;
		const { token, user, team } = await this.api(null, 'POST', '/v1/auth/signup', { name, email, password });
		return { name, email, password, token, user, team };
	}

	/** Somebody who has an account already. */
	async logIn({ email, password }) {
		const { token, user, team } = await this.api(null, 'POST', '/v1/auth/login', { email, password });
		return { name: user.name, email, password, token, user, team };
	}

	/** Puts somebody into the team of who, and lets them work there. */
	async join(who, other, role) {
		await this.api(who, 'POST', `/v1/teams/${who.team.id}/members`, { email: other.email, role });
		const { token, team } = await this.api(other, 'POST', '/v1/auth/switch-team', { team_id: who.team.id });
		return { ...other, token, team };
	}

	/** A sandbox that runs. */
	create(who, name, more = {}) {
		return this.api(who, 'POST', '/v1/sandboxes', { template: 'base', vcpus: 0.5, disk_mb: 512, timeout_sec: 3600, metadata: { name }, ...more });
	}

	/** Runs a shell line in a sandbox. */
	async sh(who, id, cmd) {
		const done = await this.api(who, 'POST', `/v1/sandboxes/${id}/exec`, { cmd });
		if (done.exit_code !== 0) throw new Error(`${cmd}: ${done.exit_code} ${done.stderr}`);
		return done.stdout;
	}

	/** A browser of its own: nothing is shared with others. */
	async browser(options = {}) {
		const context = await this.#browser.newContext({ baseURL: this.url, viewport: { width: 1280, height: 800 }, colorScheme: 'light', reducedMotion: 'reduce', acceptDownloads: true, ...options });
		context.setDefaultTimeout(patience);
		context.on('page', (page) => this.#watch(page));
		this.#contexts.push(context);
		context.on('close', () => (this.#contexts = this.#contexts.filter((c) => c !== context)));
		return context;
	}

	/** A page of somebody who is logged in, in a browser of its own. */
	async enter(who, path = '/dashboard', options = {}) {
		const context = await this.browser(options);
		const response = await context.request.post('/v1/auth/login', { data: { email: who.email, password: who.password }, headers: { Origin: this.url } });
		if (!response.ok()) throw new Error(`log in: ${response.status()} ${await response.text()}`);
		const { token, team } = await response.json();
		if (who.team && team?.id !== who.team.id) {
			const switched = await context.request.post('/v1/auth/switch-team', { data: { team_id: who.team.id }, headers: { Origin: this.url, Authorization: `Bearer ${token}` } });
			if (!switched.ok()) throw new Error(`switch the team: ${switched.status()} ${await switched.text()}`);
		}
		const page = await context.newPage();
		await page.goto(path);
		return page;
	}

	/** From here on answers of this status from such addresses are no fault. */
	expect(status, path) {
		this.#expected.push({ status, path });
	}

	/** From here on pages may go to this origin, too. */
	allow(origin) {
		this.#elsewhere.push(new URL(origin).host);
	}

	fault(text) {
		this.#faults.push(text);
	}

	takeFaults() {
		return this.#faults.splice(0);
	}

	/** What all pages show now, for whoever looks for the reason of a failure. */
	async picture(name) {
		const paths = [];
		await mkdir(this.shots, { recursive: true });
		for (const page of this.#contexts.flatMap((c) => c.pages())) {
			const path = join(this.shots, `${name}${paths.length || ''}.png`);
			await page.screenshot({ path, timeout: 5000 });
			paths.push(path);
		}
		return paths.join(' ');
	}

	async close() {
		await Promise.all(this.#contexts.map((c) => c.close().catch(() => {})));
	}

	#watch(page) {
		page.on('pageerror', (e) => this.fault(`an exception in the page: ${e.stack ?? e}`));
		page.on('console', (m) => {
			if (m.type() !== 'error' && m.type() !== 'warning') return;
			// What answers were no success is judged by their own.
			if (/^Failed to load resource/.test(m.text())) return;
			const { url, lineNumber, columnNumber } = m.location();
			this.fault(`on the console of ${page.url()}: ${m.text()} (${url}:${lineNumber + 1}:${columnNumber + 1})`);
		});
		const own = (url) => /^(blob|data):/.test(url) || [new URL(this.url).host, ...this.#elsewhere].includes(new URL(url).host);
		page.on('request', (r) => own(r.url()) || this.fault(`a request to another origin: ${r.url()}`));
		page.on('websocket', (s) => own(s.url()) || this.fault(`a connection to another origin: ${s.url()}`));
		page.on('response', (r) => {
			const { pathname } = new URL(r.url());
			const status = r.status();
			if (status < 400) return;
			if (this.#expected.some((e) => e.status === status && e.path.test(pathname))) return;
			this.fault(`${r.request().method()} ${pathname} was answered with ${status}`);
		});
	}
}

/** Something that is not there yet. */
export function unique() {
	return Math.random().toString(36).slice(2, 10);
}

/** Waits until act gives something true, and gives that. */
export async function until(what, act, within = patience) {
	const end = Date.now() + within;
	for (let pause = 10; ; pause = Math.min(pause * 2, 100)) {
		const got = await act();
		if (got) return got;
		if (Date.now() > end) throw new Error(`not within ${within} ms: ${what}`);
		await new Promise((done) => setTimeout(done, pause));
	}
}
