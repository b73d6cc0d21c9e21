// The main flow without a mouse.
import assert from 'node:assert/strict';
import { dialog, gone, prompt, screen, seen, status, tabTo } from './lib/page.mjs';
import { unique, until } from './lib/world.mjs';

export default async function (t, world) {
	const context = await world.browser();
	const page = await context.newPage();
	const me = { email: `grace.${unique()}@example.com`, password: `correct horse ${unique()}` };
	const button = (name) => page.getByRole('button', { name, exact: true });
	const press = async (locator, key = 'Enter') => {
		await tabTo(page, locator);
		await page.keyboard.press(key);
	};
	const fill = async (locator, text) => {
		await tabTo(page, locator);
		await page.keyboard.type(text);
	};

	await t.step('sign up', async () => {
		await page.goto('/signup');
		await fill(page.getByLabel('Name'), 'Grace Hopper');
		await fill(page.getByLabel('Email'), me.email);
		await fill(page.getByLabel('Password'), me.password);
		await page.keyboard.press('Enter');
		await page.waitForURL('**/dashboard');
		Object.assign(me, await world.logIn(me));
	});

	await t.step('the way past the menu', async () => {
		await seen(page.getByText('No sandboxes yet'));
		await press(page.getByRole('link', { name: 'Skip to the content' }));
		await page.keyboard.press('Tab');
		assert.ok(await page.evaluate(() => document.querySelector('main').contains(document.activeElement)), 'the focus is not in the content');
	});

	await t.step('create', async () => {
		await press(button('New sandbox'));
		await seen(dialog(page));
		assert.ok(await dialog(page).evaluate((d) => d.contains(document.activeElement)), 'the focus is not in the dialog');
		await page.keyboard.press('Escape');
		await gone(dialog(page));
		assert.ok(await button('New sandbox').evaluate((b) => b === document.activeElement), 'the focus is not back where it was');
		await page.keyboard.press('Enter');
		await fill(dialog(page).getByLabel('Name'), 'by hand');
		await page.keyboard.press('Enter');
		await page.waitForURL('**/dashboard/sandboxes/sb-*');
		await status(page, 'Running');
	});

	await t.step('the terminal has the keys, and gives them back', async () => {
		await prompt(page);
		await page.keyboard.type('echo $((6*7))-is-it\n');
		await until('its output', async () => (await screen(page)).includes('42-is-it'));
		// Tab is the shell's there.
		await page.keyboard.type('echo compl >/tmp/complete-me; echo made\n');
		await until('a file', async () => /^made$/m.test(await screen(page)));
		await page.keyboard.type('cat /tmp/complete-');
		await page.keyboard.press('Tab');
		await page.keyboard.press('Enter');
		await until('a completed name', async () => /^compl$/m.test(await screen(page)));
		await page.keyboard.press('Shift+Escape');
		assert.ok(!(await page.getByTestId('terminal').evaluate((d) => d.contains(document.activeElement))), 'the terminal keeps the focus');
	});

	await t.step('pause and resume', async () => {
		await press(button('Pause'));
		await status(page, 'Paused');
		await press(button('Resume'));
		await status(page, 'Running');
	});

	await t.step('back to the list, and there again', async () => {
		await prompt(page);
		await page.keyboard.press('Shift+Escape');
		await press(page.getByRole('link', { name: 'Sandboxes', exact: true }));
		await page.waitForURL('**/dashboard');
		await press(page.getByRole('link', { name: 'by hand' }));
		await page.waitForURL('**/dashboard/sandboxes/sb-*');
	});

	await t.step('anywhere by its name', async () => {
		await prompt(page);
		await page.keyboard.press('Shift+Escape');
		await page.keyboard.press('Control+k');
		await seen(page.getByRole('dialog'));
		await page.keyboard.type('api ke');
		await page.keyboard.press('Enter');
		await page.waitForURL('**/dashboard/keys');
		await seen(page.getByRole('heading', { name: 'API keys' }));
		await page.keyboard.type('gs');
		await page.waitForURL('**/dashboard');
		await page.keyboard.press('?');
		await seen(dialog(page).getByText('Everywhere'));
		await page.keyboard.press('Escape');
		await gone(dialog(page));
		await press(page.getByRole('link', { name: 'by hand' }));
		await page.waitForURL('**/dashboard/sandboxes/sb-*');
	});

	await t.step('delete', async () => {
		await prompt(page);
		await page.keyboard.press('Shift+Escape');
		await press(button('Delete'));
		await seen(dialog(page));
		await press(dialog(page).getByRole('button', { name: 'Delete', exact: true }));
		await status(page, 'Stopped');
	});

	await t.step('log out', async () => {
		await press(button('GH Grace Hopper').or(button('Grace Hopper')));
		await seen(page.getByRole('menuitem', { name: 'Log out' }));
		for (let n = 0; n < 8 && !(await page.getByRole('menuitem', { name: 'Log out' }).evaluate((i) => i === document.activeElement)); n++) await page.keyboard.press('ArrowDown');
		await page.keyboard.press('Enter');
		await page.waitForURL('**/login**');
	});
}
