// What sandboxes are made from.
import assert from 'node:assert/strict';
import { act, confirm, dialog, prompt, row, seen, status, visit } from './lib/page.mjs';
import { until } from './lib/world.mjs';

export default async function (t, world) {
	const me = await world.signUp('Tina Template');
	const page = await world.enter(me);
	const id = () => new URL(page.url()).pathname.split('/').pop();

	await t.step('build one by a recipe, and watch', async () => {
		await visit(page, 'Templates');
		await seen(row(page, 'base').getByText('Ready'));
		const menu = page.getByRole('button', { name: 'What to do with base', exact: true });
		if (await menu.count()) {
			await menu.click();
			await seen(page.getByRole('menuitem'));
			assert.equal(await page.getByRole('menuitem', { name: 'Delete' }).count(), 0, 'the platform’s own can be deleted');
			await page.keyboard.press('Escape');
		}
		await page.getByRole('button', { name: 'Build one' }).click();
		await dialog(page).getByLabel('Name').fill('greeter');
		await dialog(page).getByLabel('Recipe').fill('FROM base\nRUN echo hello-from-the-build && sudo sh -c "echo hi >/etc/greeting"\nENV GREETING=salut\n');
		await dialog(page).getByRole('button', { name: 'Build', exact: true }).click();
		await page.waitForURL('**/dashboard/builds/**');
		await seen(page.getByText('hello-from-the-build', { exact: true }).or(page.getByText(/^hello-from-the-build$/m)));
		await until('it is ready', async () => (await world.api(me, 'GET', `/v1/builds/${id()}`)).status === 'ready', 60_000);
		await seen(page.locator('main').getByText('Ready', { exact: true }));
	});

	await t.step('it is listed, and sandboxes come of it', async () => {
		await visit(page, 'Templates');
		await seen(row(page, 'greeter').getByText('Ready'));
		await page.getByRole('button', { name: 'Builds' }).click();
		await seen(row(page, 'greeter').getByRole('link'));
		await visit(page, 'Sandboxes');
		await page.getByRole('button', { name: 'New sandbox' }).click();
		await dialog(page).getByLabel('Made from').selectOption('greeter');
		await dialog(page).getByRole('button', { name: 'Create', exact: true }).click();
		await page.waitForURL('**/dashboard/sandboxes/sb-*');
		await status(page, 'Running');
		await prompt(page);
		assert.equal(await world.sh(me, id(), 'cat /etc/greeting; echo $GREETING'), 'hi\nsalut\n');
		const made = id();
		await visit(page, 'Templates');
		await world.api(me, 'DELETE', `/v1/sandboxes/${made}`);
	});

	await t.step('delete it', async () => {
		await act(page, 'greeter', 'Delete');
		await confirm(page, 'Delete', /live on/);
		await until('it is gone', async () => (await row(page, 'greeter').count()) === 0);
	});
}
