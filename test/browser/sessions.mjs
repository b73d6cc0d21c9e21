// Who is logged in, and what is left when they are not any more.
import assert from 'node:assert/strict';
import { dialog, gone, logOut, open, row, seen, status, switchTeam, visit } from './lib/page.mjs';
import { until } from './lib/world.mjs';

const pages = ['', '/templates', '/snapshots', '/keys', '/team', '/limits', '/audit', '/settings'];

export default async function (t, world) {
	const ada = await world.signUp('Ada Secretive');
	const bob = await world.signUp('Bob Curious');
	const mine = await world.create(ada, 'adas-secret-sandbox');
	await world.api(ada, 'POST', '/v1/api-keys', { name: 'adas-secret-key' });
	await world.api(ada, 'PATCH', `/v1/teams/${ada.team.id}`, { name: 'Adas Secret Team' });
	const other = await world.api(ada, 'POST', '/v1/teams', { name: 'Adas Other Team' });
	const secrets = /adas[ -]secret|Ada Secretive|ada\.secretive/i;
	const page = await world.enter({ ...ada, team: null });

	/** Everything of the page that anybody could look at. */
	const all = (of) => of.evaluate(() => document.documentElement.outerHTML + [...document.querySelectorAll('input')].map((i) => i.value).join());

	await t.step('the way in', async () => {
		const context = await world.browser();
		const page = await context.newPage();
		await page.goto('/login');
		await seen(page.getByRole('link', { name: 'Continue with GitHub' }));
		assert.match(await page.getByRole('link', { name: 'Continue with GitHub' }).getAttribute('href'), /^\/v1\/auth\/oauth\/github$/);
		world.expect(401, /\/auth\/login$/);
		await page.getByLabel('Email').fill(bob.email);
		await page.getByLabel('Password').fill('not it');
		await page.getByRole('button', { name: 'Log in' }).click();
		await seen(page.getByRole('alert'));
		await page.getByLabel('Password').fill(bob.password);
		await page.getByRole('button', { name: 'Log in' }).click();
		await page.waitForURL('**/dashboard');
		// Where somebody wanted to go is where they get, in this app and nowhere else.
		for (const [next, where] of [['/dashboard/keys?x=1', '/dashboard/keys'], ['https://example.com/', '/dashboard'], ['//example.com/', '/dashboard'], ['/dashboard/../v1/limits', '/dashboard'], ['http://[', '/dashboard']]) {
			await page.goto(`/login?next=${encodeURIComponent(next)}`);
			await page.waitForURL((u) => u.pathname !== '/login');
			assert.equal(new URL(page.url()).pathname.replace(/\/$/, ''), where, next);
		}
		await context.close();
	});

	await t.step('the token is in memory and nowhere else', async () => {
		await page.goto(`/dashboard/sandboxes/${mine.id}`);
		await status(page, 'Running');
		await until('a terminal', async () => (await page.getByTestId('terminal').locator('.xterm-rows').count()) === 1);
		const kept = await page.evaluate(async () => ({
			storage: JSON.stringify({ ...localStorage }) + JSON.stringify({ ...sessionStorage }),
			cookie: document.cookie,
			databases: (await indexedDB.databases()).length,
			caches: (await caches.keys()).length,
			url: location.href,
			history: JSON.stringify(history.state)
		}));
		const jwt = /eyJ[\w-]+\.|[\w-]{20,}\.[\w-]{20,}/;
		assert.doesNotMatch(kept.storage, jwt);
		assert.deepEqual([kept.cookie, kept.databases, kept.caches], ['skerry_session=1', 0, 0]); // that there is a session, and nothing of it
		assert.doesNotMatch(kept.url + kept.history, jwt);
		const cookies = await page.context().cookies();
		assert.ok(cookies.length > 1, 'there is a cookie');
		for (const c of cookies.filter((c) => c.name !== 'skerry_session')) assert.ok(c.httpOnly && c.sameSite !== 'None' && c.path !== '/', `${c.name} can be read, or is sent everywhere: ${JSON.stringify(c)}`);
	});

	await t.step('no address has the token in it', async () => {
		const seen = [];
		page.on('request', (r) => seen.push(r.url()));
		page.on('websocket', (s) => seen.push(s.url()));
		for (const p of pages) {
			await page.goto(`/dashboard${p}`);
			await page.getByRole('heading', { level: 1 }).waitFor();
		}
		assert.ok(seen.length > 50);
		assert.deepEqual(seen.filter((u) => /eyJ|token=|bearer/i.test(u)), []);
	});

	await t.step('another team shows nothing of the former', async () => {
		await page.goto('/dashboard');
		await seen(row(page, 'adas-secret-sandbox'));
		await switchTeam(page, 'Adas Other Team');
		await seen(page.getByText('No sandboxes yet'));
		assert.doesNotMatch(await page.locator('main').innerText(), /secret/i);
		await visit(page, 'API keys');
		await seen(page.getByText('No keys yet'));
		await visit(page, 'Team');
		await seen(page.getByRole('heading', { name: 'Adas Other Team' }));
		assert.doesNotMatch(await page.locator('main').innerText(), /Secret Team/);
		// What another tab shows is the team of this browser, too.
		const second = await page.context().newPage();
		await second.goto('/dashboard');
		await seen(second.getByRole('button', { name: 'Team: Adas Other Team' }));
		await switchTeam(page, 'Adas Secret Team');
		await seen(second.getByRole('button', { name: 'Team: Adas Secret Team' }));
		await seen(row(second, 'adas-secret-sandbox'));
		await second.close();
	});

	await t.step('log out in one tab, and the other shows nothing old', async () => {
		const second = await page.context().newPage();
		await second.goto('/dashboard');
		await visit(second, 'API keys');
		await seen(row(second, 'adas-secret-key'));
		await page.goto('/dashboard');
		await seen(row(page, 'adas-secret-sandbox'));
		await logOut(page, 'Ada Secretive');
		await second.waitForURL('**/login**');
		for (const p of [page, second]) assert.doesNotMatch(await all(p), secrets);
		await second.goBack();
		await second.waitForURL('**/login**');
		assert.doesNotMatch(await all(second), secrets);
		await second.close();
	});

	await t.step('somebody else in the same browser sees their own alone', async () => {
		await page.goto('/login');
		await page.getByLabel('Email').fill(bob.email);
		await page.getByLabel('Password').fill(bob.password);
		await page.getByRole('button', { name: 'Log in' }).click();
		await page.waitForURL('**/dashboard');
		await seen(page.getByText('No sandboxes yet'));
		for (const p of pages) {
			await open(page, `/dashboard${p}`);
			assert.doesNotMatch(await all(page), secrets, p);
		}
		world.expect(404, new RegExp(mine.id));
		await page.goto(`/dashboard/sandboxes/${mine.id}`);
		await seen(page.getByRole('alert'));
		assert.doesNotMatch(await all(page), secrets);
	});

	await t.step('a session that was ended elsewhere shows nothing either', async () => {
		const tab = await world.enter({ ...ada, team: null }, '/dashboard');
		await seen(row(tab, 'adas-secret-sandbox'));
		const now = await world.logIn(ada);
		world.expect(401, /./);
		await world.api(now, 'POST', '/v1/me/password', { current_password: ada.password, new_password: `${ada.password}!` });
		await visit(tab, 'API keys');
		await tab.waitForURL('**/login**');
		assert.doesNotMatch(await all(tab), secrets);
		ada.password += '!';
	});

	await t.step('name and email stand apart', async () => {
		const tab = await world.enter({ ...ada, team: null }, '/dashboard/team');
		const cells = row(tab, ada.email).getByRole('cell');
		await seen(cells.first());
		assert.match(await cells.nth(0).innerText(), /^Ada Secretive\s*you$/);
		assert.equal(await cells.nth(1).innerText(), ada.email);
		await seen(tab.getByRole('button', { name: /Ada Secretive/ }).last());
		assert.ok(!(await tab.locator('aside').last().innerText()).includes(ada.email), 'the email stands in the sidebar, too');
	});

	const now = await world.logIn(ada);
	await world.api(now, 'POST', '/v1/auth/switch-team', { team_id: ada.team.id });
	await world.api(await world.logIn(ada), 'DELETE', `/v1/sandboxes/${mine.id}`);
}
