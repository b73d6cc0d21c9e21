// The first load: small, from here alone, under a strict policy.
import assert from 'node:assert/strict';
import { seen } from './lib/page.mjs';

export default async function (t, world) {
	const me = await world.signUp('Lou Load');

	/** What comes over the wire until a page stands, in bytes. */
	async function weigh(page, path, ready) {
		const wire = await page.context().newCDPSession(page);
		await wire.send('Network.enable');
		await wire.send('Network.setCacheDisabled', { cacheDisabled: true });
		const urls = new Map();
		let sum = 0;
		wire.on('Network.requestWillBeSent', (e) => urls.set(e.requestId, e.request.url));
		wire.on('Network.loadingFinished', (e) => (sum += e.encodedDataLength));
		const response = await page.goto(path);
		await ready();
		// The stream of events never ends; all else has, when nothing came for a while.
		for (let before = -1; before !== sum; await new Promise((done) => setTimeout(done, 500))) before = sum;
		await wire.detach();
		return { sum, count: urls.size, response };
	}

	await t.step('login, from nothing', async () => {
		const context = await world.browser();
		const page = await context.newPage();
		const { sum, count, response } = await weigh(page, '/login', () => seen(page.getByRole('button', { name: 'Log in' })));
		t.log(`${(sum / 1024).toFixed(0)} KB in ${count} requests`);
		assert.ok(sum <= 250 * 1024, `${sum} bytes`);
		const policy = Object.fromEntries(response.headers()['content-security-policy'].split(';').map((d) => d.trim().split(/ (.*)/s)));
		assert.equal(policy['default-src'], "'none'");
		for (const [name, value = ''] of Object.entries(policy)) assert.doesNotMatch(value, /unsafe-|\*|https?:/, name);
		for (const name of ['script-src', 'style-src', 'connect-src']) assert.match(policy[name], /'self'/, name);
		assert.equal(policy['frame-ancestors'], "'none'");
	});

	await t.step('the dashboard, from nothing', async () => {
		const page = await world.enter(me, '/login');
		await page.waitForURL('**/dashboard');
		await page.goto('about:blank');
		const { sum, count } = await weigh(page, '/dashboard', () => seen(page.getByText('No sandboxes yet')));
		t.log(`${(sum / 1024).toFixed(0)} KB in ${count} requests`);
		assert.ok(sum <= 250 * 1024, `${sum} bytes`);
	});

	await t.step('the policy holds', async () => {
		const page = await world.enter(me, '/dashboard');
		await seen(page.getByText('No sandboxes yet'));
		const blocked = await page.evaluate(async () => {
			const said = [];
			document.addEventListener('securitypolicyviolation', (e) => said.push(e.effectiveDirective));
			const script = document.createElement('script');
			script.textContent = 'globalThis.ran = true';
			document.head.append(script);
			const style = document.createElement('style');
			style.textContent = 'body { display: none }';
			document.head.append(style);
			const image = new Image();
			image.src = 'http://192.0.2.9/x.png';
			await fetch('http://192.0.2.9/').catch(() => {});
			await new Promise((done) => setTimeout(done, 200));
			return { ran: 'ran' in globalThis, shown: getComputedStyle(document.body).display, said: [...new Set(said)].sort() };
		});
		assert.equal(blocked.ran, false);
		assert.equal(blocked.shown, 'block');
		assert.deepEqual(blocked.said, ['connect-src', 'img-src', 'script-src-elem', 'style-src-elem']);
		world.takeFaults(); // of these four, which were meant
	});

	await t.step('a page that is not there', async () => {
		const page = await world.enter(me, '/dashboard');
		world.expect(404, /./);
		await page.goto('/dashboard/no/such/page');
		await seen(page.getByText(/not found|no such page|nothing here|does not exist/i));
		world.takeFaults();
	});

	await t.step('idle, it asks for nothing', async () => {
		const page = await world.enter(me, '/dashboard');
		await seen(page.getByText('No sandboxes yet'));
		await new Promise((done) => setTimeout(done, 500));
		const asked = [];
		page.on('request', (r) => asked.push(r.url()));
		await new Promise((done) => setTimeout(done, world.scaled(60_000, 5_000)));
		assert.ok(asked.length <= 1, asked.join('\n'));
	});
}
