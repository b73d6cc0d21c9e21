// Plays scripts in one browser, several at once. It is told what to play by lines of JSON, and
// says by lines of JSON what happens; when nobody tells it more, it ends.
import { createInterface } from 'node:readline';
import { chromium } from './packages.mjs';
import { World } from './world.mjs';

const setup = JSON.parse(process.argv[2]);
const say = (what) => process.stdout.write(JSON.stringify(what) + '\n');

const browser = await chromium.launch({
	executablePath: setup.chromium,
	// As root it has no sandbox of its own. Gestures that need a person are played by one here.
	args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--js-flags=--expose-gc', '--enable-precise-memory-info']
});

/** What a script has in its hands: steps, and what the test answers. */
class Play {
	#asked = []; // answered in this order

	constructor(name) {
		this.name = name;
		this.world = new World(setup, browser, this);
	}

	/** One thing that must hold. When it does not, the script ends. */
	async step(name, act) {
		this.say({ kind: 'begin', name });
		const fault = await this.#fault(act);
		this.say({ kind: 'end', error: fault });
		if (fault) throw new Ended();
	}

	/** As step, but what follows does not depend on it. */
	async check(name, act) {
		this.say({ kind: 'begin', name });
		this.say({ kind: 'end', error: await this.#fault(act) });
	}

	log(text) {
		this.say({ kind: 'log', name: String(text) });
	}

	ask(name, args = null) {
		return new Promise((answer, refuse) => {
			this.#asked.push({ answer, refuse });
			this.say({ kind: 'ask', name, args });
		});
	}

	answered({ answer, error }) {
		const asked = this.#asked.shift();
		if (error) asked.refuse(new Error(error));
		else asked.answer(answer);
	}

	say(what) {
		say({ play: this.name, ...what });
	}

	async #fault(act) {
		try {
			await act();
			return this.world.takeFaults().join('\n');
		} catch (e) {
			if (e instanceof Ended) throw e;
			const seen = await this.world.picture(`failed-${this.name}`).catch(() => '');
			return [e.stack ?? String(e), ...this.world.takeFaults(), seen && `seen: ${seen}`].filter(Boolean).join('\n');
		}
	}
}

class Ended extends Error {}

const plays = new Map();

async function play(p) {
	const { name } = p;
	let error = '';
	try {
		const { default: script } = await import(`../${name}.mjs`);
		await script(p, p.world);
		error = p.world.takeFaults().join('\n');
	} catch (e) {
		if (!(e instanceof Ended)) {
			const seen = await p.world.picture(`failed-${name}`).catch(() => '');
			error = [e.stack ?? String(e), seen && `seen: ${seen}`].filter(Boolean).join('\n');
		}
	}
	await p.world.close();
	plays.delete(name);
	p.say({ kind: 'end', error });
}

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
	const told = JSON.parse(line);
	if (!told.begin) return plays.get(told.play)?.answered(told);
	const p = new Play(told.play);
	plays.set(told.play, p);
	void play(p);
});
lines.on('close', async () => {
	await browser.close();
	process.exit(0);
});
