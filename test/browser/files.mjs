// The file browser: many, oddly named, and large.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { act, confirm, dialog, download, gone, jump, row, seen } from './lib/page.mjs';
import { until } from './lib/world.mjs';

/** Names that somebody may well have, or that somebody else hopes for. */
const odd = ['with space', 'ünïcödé 山 🪨', 'line\nbreak', `quo"te's`, '-rf', '<img src=x onerror=alert(1)>', '%2e%2e', 'a&b=c#d?e', '.hidden', 'tab\there', 'x'.repeat(200), '$(touch pwned)', 'right\u202eto-left'];

export default async function (t, world) {
	const me = await world.signUp('Fiona Files');
	const box = await world.create(me, 'archive', { vcpus: 2, disk_mb: 4096 });
	const put = (path, body) => fetch(`${world.url}/v1/sandboxes/${box.id}/files?${new URLSearchParams({ path })}`, { method: 'PUT', body, headers: { Authorization: `Bearer ${me.token}` } });
	for (const name of odd) assert.ok((await put(`/home/user/odd/${name}`, `content of ${name}`)).ok, name);
	await world.sh(me, box.id, 'mkdir many && cd many && seq -f "entry-%05g" 1 10000 | xargs touch');
	const page = await world.enter(me, `/dashboard/sandboxes/${box.id}?tab=files`);
	const names = () => page.getByRole('table').getByRole('row').locator('td:first-child button');

	await t.step('odd names are opened, downloaded and deleted as they are', async () => {
		await row(page, 'odd').getByRole('button', { name: /^odd/ }).first().click();
		await until('all of them', async () => (await names().count()) === odd.length);
		const listed = (await world.api(me, 'GET', `/v1/sandboxes/${box.id}/files/list?path=${encodeURIComponent('/home/user/odd')}`)).items.map((e) => e.name).sort();
		assert.deepEqual(listed, [...odd].sort());
		for (const [n, name] of odd.entries()) {
			// What would not be seen is shown by a sign; what a menu is called tells which it is.
			await jump(page, `/dashboard/sandboxes/${box.id}?${new URLSearchParams({ tab: 'files', path: '/home/user/odd', file: name })}`);
			await until(`the content of ${JSON.stringify(name)}`, async () => (await dialog(page).getByTestId('preview').count()) && (await dialog(page).getByTestId('preview').textContent()) === `content of ${name}`);
			assert.equal(await page.locator('img[src=x]').count(), 0);
			if (!world.long && n % 3) continue;
			const file = await download(page, () => dialog(page).getByRole('button', { name: 'Download' }).click());
			assert.equal(await digest(await file.path()), createHash('sha256').update(`content of ${name}`).digest('hex'), name);
		}
		await page.goto(`/dashboard/sandboxes/${box.id}?${new URLSearchParams({ tab: 'files', path: '/home/user/odd' })}`);
		await act(page, '-rf', 'Delete');
		await confirm(page, 'Delete', /cannot be undone/);
		await until('one less', async () => (await names().count()) === odd.length - 1);
		assert.equal((await world.sh(me, box.id, 'ls -A odd | grep -c . ; ls -A many | wc -l')).split('\n')[1], '10000');
		assert.ok(!(await world.sh(me, box.id, 'ls -A . odd')).includes('pwned\n'));
	});

	await t.step('ten thousand entries', async () => {
		await page.goto(`/dashboard/sandboxes/${box.id}?tab=files`);
		await row(page, 'many').getByRole('button', { name: /^many/ }).first().click();
		await seen(page.getByText('entry-00001', { exact: true }));
		const nodes = () => page.evaluate(() => document.querySelectorAll('*').length);
		assert.ok((await nodes()) < 3000, `${await nodes()} elements`);
		const began = Date.now();
		const far = 10_000;
		await until(`number ${far}`, async () => {
			await page.evaluate((rows) => scrollTo(0, rows * document.querySelector('tr[data-index]').offsetHeight), far);
			return page.getByText(`entry-${String(far).padStart(5, '0')}`, { exact: true }).isVisible();
		}, world.scaled(120_000, 30_000));
		t.log(`to number ${far} in ${Date.now() - began} ms, ${await nodes()} elements`);
		assert.ok((await nodes()) < 3000, `${await nodes()} elements`);
		await page.evaluate(() => scrollTo(0, 0));
		await seen(page.getByText('entry-00001', { exact: true }));
		if (!world.long) return;
		await seen(page.getByText(/10,000 entries/));
		await page.getByLabel('Filter by name').fill('77');
		await seen(page.getByText('entry-00077', { exact: true }));
		await until('only these', async () => !(await page.getByText('entry-00001', { exact: true }).count()));
	});

	await t.step('a large download arrives whole', async () => {
		const size = world.scaled(1024, 50);
		await world.sh(me, box.id, `mkdir -p large; head -c ${size}M /dev/urandom >large/blob`);
		const sum = (await world.sh(me, box.id, 'sha256sum large/blob')).split(' ')[0];
		await page.goto(`/dashboard/sandboxes/${box.id}?${new URLSearchParams({ tab: 'files', path: '/home/user/large' })}`);
		const before = await page.evaluate(() => performance.memory.usedJSHeapSize);
		const began = Date.now();
		const file = await download(page, () => act(page, 'blob', 'Download'));
		const path = await file.path();
		const took = (Date.now() - began) / 1000;
		assert.equal(await digest(path), sum);
		const grown = (await page.evaluate(() => performance.memory.usedJSHeapSize)) - before;
		t.log(`${size} MB at ${(size / took).toFixed(0)} MB/s, the page grew by ${(grown / 2 ** 20).toFixed(1)} MB`);
		assert.ok(grown < 30 * 2 ** 20, 'the page holds what it downloads');
		await file.delete();
	});

	await t.step('folders, moves, and an upload into them', async () => {
		await page.goto(`/dashboard/sandboxes/${box.id}?tab=files`);
		await page.getByRole('button', { name: 'Folder', exact: true }).click();
		await dialog(page).getByLabel('Name').fill('new here');
		await dialog(page).getByRole('button').last().click();
		await gone(dialog(page));
		await row(page, 'new here').getByRole('button', { name: /^new here/ }).first().click();
		await seen(page.getByText('Nothing in here'));
		await page.locator('input[type=file]').setInputFiles([1, 2, 3].map((n) => ({ name: `up ${n}.bin`, mimeType: 'application/octet-stream', buffer: Buffer.alloc(1000, n) })));
		await until('three files', async () => (await names().count()) === 3);
		assert.equal(await world.sh(me, box.id, 'cd "new here" && stat -c "%n %s" *'), 'up 1.bin 1000\nup 2.bin 1000\nup 3.bin 1000\n');
		await act(page, 'up 2.bin', 'Rename or move');
		await dialog(page).getByRole('textbox').fill('/home/user/moved.bin');
		await dialog(page).getByRole('button').last().click();
		await gone(dialog(page));
		await until('two files', async () => (await names().count()) === 2);
		assert.equal(await world.sh(me, box.id, 'stat -c %s moved.bin'), '1000\n');
	});

	await page.close();
	await world.api(me, 'DELETE', `/v1/sandboxes/${box.id}`);
}

async function digest(path) {
	const hash = createHash('sha256');
	for await (const part of createReadStream(path)) hash.update(part);
	return hash.digest('hex');
}
