// What others have written stays text, wherever it is shown.
import assert from 'node:assert/strict';
import { seen } from './lib/page.mjs';
import { unique, until } from './lib/world.mjs';

const probe = (where) => `<img src=x onerror="pwned('${where}')"><script>pwned('${where}')</script>`;

export default async function (t, world) {
	const admin = await world.logIn(world.admin);
	const name = `<b onmouseover=pwned()>Eve ${unique()}</b>`;
	const eve = await world.signUp(name.slice(0, 100));
	const teamName = probe('team').slice(0, 128);
	await world.api(eve, 'PATCH', `/v1/teams/${eve.team.id}`, { name: teamName });
	const box = await world.create(eve, probe('name'), { metadata: { name: probe('name'), [`k<i>`]: probe('value'), url: 'javascript:pwned()' } });
	await world.api(eve, 'POST', '/v1/api-keys', { name: probe('key').slice(0, 100) });
	const path = '/home/user/' + probe('file').replaceAll('/', '\u2215');
	const put = await fetch(`${world.url}/v1/sandboxes/${box.id}/files?${new URLSearchParams({ path })}`, { method: 'PUT', body: probe('content'), headers: { Authorization: `Bearer ${eve.token}` } });
	assert.ok(put.ok, await put.text());
	await fetch(`${world.url}/v1/sandboxes/${box.id}/files?${new URLSearchParams({ path: '/home/user/a.svg' })}`, { method: 'PUT', body: `<svg xmlns="http://www.w3.org/2000/svg" onload="pwned('svg')" width="9" height="9"><script>pwned('svg')</script></svg>`, headers: { Authorization: `Bearer ${eve.token}` } });
	await fetch(`${world.url}/v1/sandboxes/${box.id}/files?${new URLSearchParams({ path: '/home/user/page.html' })}`, { method: 'PUT', body: `<script>pwned('html')</script>`, headers: { Authorization: `Bearer ${eve.token}` } });
	const snapshot = await world.api(eve, 'POST', '/v1/snapshots', { sandbox_id: box.id, name: 'plain' });
	await world.api(admin, 'PUT', `/v1/admin/teams/${eve.team.id}/byoc`, { enabled: true });
	await world.api(eve, 'POST', '/v1/hosts', { type: 'byoc', name: probe('host').slice(0, 100), provider: probe('provider').slice(0, 100), availability_zone: probe('zone').slice(0, 100) });
	assert.ok(snapshot);

	const page = await world.enter(eve, '/dashboard');
	const pwned = [];
	for (const context of [page.context()]) await context.exposeFunction('pwned', (where) => pwned.push(where));
	page.on('dialog', (d) => (pwned.push(d.message()), d.dismiss()));

	/** The probe is seen as text, and nothing came of it. */
	async function harmless(on, text) {
		await until(`${text} as text on ${on.url()}`, async () => (await on.locator('body').innerText()).replace(/\s+/g, ' ').includes(text) || on.locator(`[title*="${text.replaceAll('"', '\\"')}"]`).count());
		assert.equal(await on.locator('img[src="x"], b[onmouseover], i:text("")').count(), 0);
		assert.equal(await on.locator('main script').count(), 0);
		assert.deepEqual(pwned, []);
	}

	for (const [path, text] of [
		['', '<img src=x'],
		[`/sandboxes/${box.id}`, '<img src=x'],
		[`/sandboxes/${box.id}?tab=files`, '<img src=x'],
		[`/sandboxes/${box.id}?tab=events`, '<img src=x'],
		['/snapshots', 'plain'],
		['/keys', '<img src=x'],
		['/byoc', '<img src=x'],
		['/team', '<b onmouseover'],
		['/audit', '<img src=x'],
		['/settings', '<img src=x'],
		['/limits', '<img src=x'],
		['/templates', '<img src=x']
	]) {
		await t.check(`/dashboard${path.replace(box.id, '…')}`, async () => {
			await page.goto(`/dashboard${path}`);
			await page.getByRole('heading', { level: 1 }).waitFor();
			await harmless(page, text);
		});
	}

	await t.check('the preview of a file', async () => {
		await page.goto(`/dashboard/sandboxes/${box.id}?${new URLSearchParams({ tab: 'files', file: 'page.html' })}`);
		await seen(page.getByTestId('preview'));
		assert.equal(await page.getByTestId('preview').textContent(), `<script>pwned('html')</script>`);
		await page.goto(`/dashboard/sandboxes/${box.id}?${new URLSearchParams({ tab: 'files', file: 'a.svg' })}`);
		await seen(page.getByRole('dialog').locator('img'));
		assert.deepEqual(pwned, []);
	});

	await t.check('a file as a page of its own', async () => {
		const { ticket } = await world.api(eve, 'POST', `/v1/sandboxes/${box.id}/stream-ticket`, { operation: 'downloadFile' });
		const response = await fetch(`${world.url}/v1/sandboxes/${box.id}/files?${new URLSearchParams({ path: '/home/user/page.html', ticket })}`);
		assert.match(response.headers.get('content-disposition') ?? '', /^attachment/);
		assert.doesNotMatch(response.headers.get('content-type') ?? '', /html/);
		assert.equal(response.headers.get('x-content-type-options'), 'nosniff');
		await response.body.cancel();
	});

	await t.check('the pages of the platform', async () => {
		const theirs = await world.enter(admin, '/admin/users');
		await theirs.context().exposeFunction('pwned', (where) => pwned.push(where));
		await harmless(theirs, '<b onmouseover');
		for (const [path, text] of [['teams', '<img src=x'], ['hosts?tab=byoc', '<img src=x'], ['audit', '<b onmouseover']]) {
			await theirs.goto(`/admin/${path}`);
			await harmless(theirs, text);
		}
	});

	await page.goto('/dashboard/limits');
	for (const h of (await world.api(eve, 'GET', '/v1/hosts')).items) await world.api(eve, 'DELETE', `/v1/hosts/${h.id}`);
	await world.api(eve, 'DELETE', `/v1/sandboxes/${box.id}`);
}
