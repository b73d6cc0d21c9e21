// The main flow, as somebody who comes for the first time.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { act, confirm, dialog, download, gone, prompt, row, seen, status, type, visit } from './lib/page.mjs';
import { unique, until } from './lib/world.mjs';

export default async function (t, world) {
	const context = await world.browser();
	const page = await context.newPage();
	const me = { email: `ada.${unique()}@example.com`, password: `correct horse ${unique()}` };
	const idOf = () => new URL(page.url()).pathname.split('/').pop();

	await t.step('sign up', async () => {
		await page.goto('/');
		await page.waitForURL('**/login');
		await page.getByRole('link', { name: 'Sign up' }).click();
		await page.getByLabel('Name').fill('Ada Lovelace');
		await page.getByLabel('Email').fill(me.email);
		await page.getByLabel('Password').fill(me.password);
		await page.getByRole('button', { name: 'Create account' }).click();
		await page.waitForURL('**/dashboard');
		await seen(page.getByText('No sandboxes yet'));
		Object.assign(me, await world.logIn(me));
	});

	await t.step('create a sandbox', async () => {
		await page.getByRole('button', { name: 'Create the first one' }).click();
		await dialog(page).getByLabel('Name').fill('first light');
		await dialog(page).getByRole('button', { name: 'Create', exact: true }).click();
		await page.waitForURL('**/dashboard/sandboxes/sb-*');
		await status(page, 'Running');
		await seen(page.getByRole('heading', { name: 'first light' }));
	});
	const id = idOf();

	await t.step('a command in the terminal', async () => {
		await prompt(page);
		await type(page, 'echo $((6*7))-is-it; echo kept >kept; nohup sleep 9999 &>/dev/null & echo $! >pid', '42-is-it');
		assert.equal(await world.sh(me, id, 'cat /home/user/kept'), 'kept\n');
	});

	await t.step('upload, open and download a file', async () => {
		await page.getByRole('button', { name: 'Files' }).click();
		const content = `hello from outside ${unique()}\n`;
		await page.locator('input[type=file]').setInputFiles({ name: 'hello.txt', mimeType: 'text/plain', buffer: Buffer.from(content) });
		await seen(row(page, 'hello.txt'));
		assert.equal(await world.sh(me, id, 'cat /home/user/hello.txt; stat -c %U /home/user/hello.txt'), `${content}user\n`);

		await row(page, 'hello.txt').getByRole('button', { name: 'hello.txt', exact: true }).click();
		assert.equal(await dialog(page).getByTestId('preview').innerText(), content);
		await dialog(page).getByRole('button', { name: 'Close' }).last().click();
		await gone(dialog(page));
		const file = await download(page, () => act(page, 'hello.txt', 'Download'));
		assert.equal(file.suggestedFilename(), 'hello.txt');
		assert.equal(await readFile(await file.path(), 'utf8'), content);
	});

	await t.step('pause', async () => {
		await page.getByRole('button', { name: 'Pause', exact: true }).click();
		await status(page, 'Paused');
		await seen(page.getByText('It is paused, with everything in it.'));
		assert.equal((await world.api(me, 'GET', `/v1/sandboxes/${id}`)).status, 'paused');
	});

	await t.step('resume', async () => {
		await page.getByRole('button', { name: 'Resume', exact: true }).first().click();
		await status(page, 'Running');
		// Its memory is what it was: the program of before still runs.
		await world.sh(me, id, 'kill -0 $(cat /home/user/pid)');
	});

	await t.step('snapshot', async () => {
		await page.getByRole('button', { name: 'Snapshot', exact: true }).click();
		await dialog(page).getByLabel('Name', { exact: true }).fill('dawn');
		await dialog(page).getByRole('button', { name: 'Save', exact: true }).click();
		await seen(page.getByText('dawn is saved.'));
		await status(page, 'Running');
	});

	await t.step('fork', async () => {
		await page.getByRole('button', { name: 'Fork', exact: true }).click();
		await dialog(page).getByRole('button', { name: 'Fork', exact: true }).click();
		await page.waitForURL((url) => url.pathname.includes('/sb-') && !url.pathname.endsWith(id));
		await status(page, 'Running');
		const copy = idOf();
		await world.sh(me, copy, 'echo other >/home/user/kept; kill -0 $(cat /home/user/pid)');
		assert.equal(await world.sh(me, id, 'cat /home/user/kept'), 'kept\n');
		await visit(page, 'Sandboxes');
		await until('both in the list', async () => (await page.getByRole('row').filter({ hasText: 'Running' }).count()) === 2);
	});

	await t.step('start another one from the snapshot', async () => {
		await visit(page, 'Snapshots');
		await seen(row(page, 'dawn').getByText('Ready'));
		await act(page, 'dawn', 'Start a sandbox');
		const create = dialog(page).getByRole('button', { name: 'Create', exact: true });
		await page.waitForURL((url) => url.pathname.includes('/sb-') || url.search.includes('snapshot='));
		if (new URL(page.url()).search) await create.click();
		await page.waitForURL('**/dashboard/sandboxes/sb-*');
		await status(page, 'Running');
		assert.equal(await world.sh(me, idOf(), 'cat /home/user/kept'), 'kept\n');
	});

	await t.step('destroy', async () => {
		await page.goto(`/dashboard/sandboxes/${id}`);
		await page.getByRole('button', { name: 'Delete', exact: true }).click();
		await dialog(page).getByRole('button', { name: 'Keep' }).click();
		await gone(dialog(page));
		assert.equal((await world.api(me, 'GET', `/v1/sandboxes/${id}`)).status, 'running');
		await page.getByRole('button', { name: 'Delete', exact: true }).click();
		await confirm(page, 'Delete', /files and memory are gone for good/);
		await status(page, 'Stopped');
		await seen(page.getByText('It has ended.'));
		await until('it has ended', async () => (await world.api(me, 'GET', `/v1/sandboxes/${id}`)).end_reason === 'deleted');
		assert.equal(await page.getByRole('button', { name: 'Delete', exact: true }).count(), 0);
	});

	await t.step('its events tell the story', async () => {
		await page.getByRole('button', { name: 'Events' }).click();
		await until('what happened', async () => {
			const said = (await page.locator('main').innerText()).toLowerCase();
			return /paus/.test(said) && /resum/.test(said);
		});
	});

	for (const { id } of (await world.api(me, 'GET', '/v1/sandboxes')).items) await world.api(me, 'DELETE', `/v1/sandboxes/${id}`);
}
