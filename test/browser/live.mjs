// What happens elsewhere is seen at once, however many tabs look.
import assert from 'node:assert/strict';
import { jump, open, row, seen } from './lib/page.mjs';
import { unique } from './lib/world.mjs';

export default async function (t, world) {
	const root = await world.logIn(world.admin);
	/** How long it takes until it is seen; a machine that is busy with others spoils one look, not three. */
	const quick = async (what, act) => {
		const times = [];
		for (let n = 0; n < 3 && !times.some((ms) => ms <= 1000); n++) times.push(await act(n));
		t.log(`${what}: seen after ${times.map((ms) => `${ms} ms`).join(', ')}`);
		assert.ok(times.some((ms) => ms <= 1000), `${what} is seen after ${times.join(', ')} ms`);
	};
	const since = async (act) => {
		const began = Date.now();
		await act();
		return Date.now() - began;
	};

	await t.step('new rows of the platform’s pages slide in', async () => {
		const page = await world.enter(root, '/admin/hosts');
		await seen(page.getByRole('row').getByText('Online'));
		let navigations = 0;
		page.on('framenavigated', () => navigations++);
		await quick('a host of the platform', async () => {
			const { host } = await world.api(root, 'POST', '/v1/hosts', { type: 'regular', name: `new-${unique()}` });
			const ms = await since(() => seen(row(page, host.name)));
			assert.ok(await row(page, host.name).evaluate((tr) => tr.classList.contains('animate-slide-in')), 'it does not slide in');
			await world.api(root, 'DELETE', `/v1/hosts/${host.id}`);
			await row(page, host.name).waitFor({ state: 'detached' });
			return ms;
		});
		await open(page, '/admin/users');
		await seen(row(page, root.email));
		await quick('a user', async () => {
			const who = await world.signUp('Nina New');
			return since(() => seen(row(page, who.email)));
		});
		await open(page, '/admin/teams');
		const someone = await world.signUp('Tom Team');
		await seen(row(page, someone.email));
		await quick('a team', async () => {
			const name = `Just made ${unique()}`;
			await world.api(someone, 'POST', '/v1/teams', { name });
			return since(() => seen(row(page, name)));
		});
		await open(page, '/admin/audit');
		await seen(page.getByRole('row').filter({ hasText: 'Tom Team' }));
		await quick('an entry of the trail', async () => {
			const name = `key-${unique()}`;
			await world.api(someone, 'POST', '/v1/api-keys', { name });
			return since(() => seen(row(page, name)));
		});
		assert.ok(navigations <= 3, `${navigations} loads of a page`);
		await page.context().close();
	});

	await t.step('whose role is taken away sees no more of it', async () => {
		const deputy = await world.signUp('Dora Deputy');
		await world.api(root, 'PUT', `/v1/admin/users/${deputy.user.id}/admin`, { enabled: true });
		const page = await world.enter(deputy, '/admin/users');
		await seen(row(page, deputy.email));
		world.expect(403, /^\/v1\/admin\//);
		const stream = await fetch(`${world.url}/v1/admin/events`, { headers: { Authorization: `Bearer ${deputy.token}` } });
		assert.equal(stream.status, 200);
		await world.api(root, 'PUT', `/v1/admin/users/${deputy.user.id}/admin`, { enabled: false });
		const ms = await since(async () => {
			await seen(page.getByText('For platform admins'));
			assert.equal(await page.getByRole('table').count(), 0);
		});
		t.log(`gone from the page after ${ms} ms`);
		assert.match(await stream.text(), /event: end\ndata: .*access_ended/); // and it ends
		assert.equal((await fetch(`${world.url}/v1/admin/events`, { headers: { Authorization: `Bearer ${deputy.token}` } })).status, 403);
		await page.context().close();
	});

	await t.step('many tabs have one stream among them, and all of them see', async () => {
		const me = await world.signUp('Manu Many');
		const first = await world.enter(me);
		await seen(first.getByText('No sandboxes yet'));
		const context = first.context();
		const tabs = [first];
		// More than a browser has connections to a server, were each to have a stream.
		for (let n = 1; n < world.scaled(50, 10); n++) {
			const page = await context.newPage();
			await page.goto('/dashboard');
			await seen(page.getByText('No sandboxes yet'));
			tabs.push(page);
		}
		let requests = 0;
		context.on('request', () => requests++);
		await quick('a sandbox in all tabs', async () => {
			const box = await world.create(me, `everywhere ${unique()}`);
			const ms = await since(() => Promise.all(tabs.map((page) => seen(row(page, box.metadata.name)))));
			await world.api(me, 'DELETE', `/v1/sandboxes/${box.id}`);
			await Promise.all(tabs.map((page) => row(page, box.metadata.name).waitFor({ state: 'detached' })));
			return ms;
		});
		t.log(`${tabs.length} tabs, ${requests} requests`);
		requests = 0;
		const quiet = world.scaled(60_000, 2_000);
		await new Promise((done) => setTimeout(done, quiet));
		assert.ok(requests <= tabs.length, `${requests} requests of ${tabs.length} tabs in ${quiet} ms in which nothing happened`);

		// A cut line comes back for all; so does the one whose tab opened the stream.
		await first.close();
		tabs.shift();
		const box = await world.create(me, 'after the first is gone');
		await Promise.all(tabs.map((page) => seen(row(page, box.metadata.name))));
		await world.api(me, 'DELETE', `/v1/sandboxes/${box.id}`);
		await Promise.all(tabs.map((page) => row(page, box.metadata.name).waitFor({ state: 'detached' })));
		await jump(tabs[0], '/dashboard/keys');
		await seen(tabs[0].getByRole('heading', { name: 'API keys', exact: true }));
		await world.api(me, 'POST', '/v1/api-keys', { name: 'seen' });
		await seen(row(tabs[0], 'seen'));
		await context.close();
	});
}
