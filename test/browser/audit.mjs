// Who did what.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { download, row, seen } from './lib/page.mjs';
import { until } from './lib/world.mjs';

export default async function (t, world) {
	const me = await world.signUp('Audrey Audit');
	for (const name of ['one', 'two']) await world.api(me, 'POST', '/v1/api-keys', { name });
	await world.api(me, 'POST', '/v1/auth/switch-team', { team_id: me.team.id });
	await world.api(me, 'POST', `/v1/teams/${me.team.id}/invitations`, {});
	const page = await world.enter(me, '/dashboard/audit');

	await t.step('sentences', async () => {
		await seen(row(page, 'Audrey Audit made the key two'));
		await seen(row(page, 'Audrey Audit made an invitation'));
		// What has no sentence is shown as its action and, in brackets, what it was about.
		const raw = (await page.getByRole('row').getByRole('button').allInnerTexts()).filter((s) => /\([a-z ]+\)/.test(s));
		assert.deepEqual(raw, []);
	});

	await t.step('new entries come by themselves', async () => {
		await world.api(me, 'POST', '/v1/api-keys', { name: 'three' });
		await seen(row(page, 'Audrey Audit made the key three'));
	});

	await t.step('the raw entry on demand', async () => {
		const entry = page.getByRole('button', { name: /made the key two/ });
		assert.equal(await entry.getAttribute('aria-expanded'), 'false');
		await entry.click();
		const raw = JSON.parse(await page.locator('pre').innerText());
		assert.equal(raw.resource_type, 'api_key');
		assert.equal(raw.action, 'create');
		assert.equal(raw.metadata.name, 'two');
		await entry.click();
		assert.equal(await page.locator('pre').count(), 0);
	});

	await t.step('filters, which the address keeps', async () => {
		await page.getByLabel('About').selectOption('session');
		await until('sessions alone', async () => {
			const said = await page.getByRole('row').allInnerTexts();
			return said.some((s) => /logged in/.test(s)) && !said.some((s) => /made the key/.test(s));
		});
		await page.getByLabel('About').selectOption('api_key');
		await page.getByLabel(/Filter by action/).fill('create');
		await page.waitForURL(/action=create/);
		assert.match(page.url(), /resource=api_key/);
		await until('keys alone', async () => (await page.getByRole('row').filter({ hasText: 'made the key' }).count()) === 3 && !(await page.getByText('logged in').count()));
		await page.reload();
		await until('the same again', async () => (await page.getByRole('row').filter({ hasText: 'made the key' }).count()) === 3);
		await page.getByLabel(/Filter by action/).fill('destroy');
		await seen(page.getByText('No entry fits.'));
	});

	await t.step('export', async () => {
		await page.goto('/dashboard/audit');
		const file = await download(page, () => page.getByRole('button', { name: 'Export' }).click());
		const lines = (await readFile(await file.path(), 'utf8')).trim().split('\n').map((l) => JSON.parse(l));
		assert.ok(lines.length >= 4, `${lines.length} lines`);
	});
}
