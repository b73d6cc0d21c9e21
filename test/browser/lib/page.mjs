// What people do and see on pages, in the words of the pages.
import assert from 'node:assert/strict';
import { until } from './world.mjs';

/** Waits until what a locator finds is seen. */
export const seen = (locator) => locator.first().waitFor({ state: 'visible' });
export const gone = (locator) => locator.first().waitFor({ state: 'hidden' });

/** Goes to another page by the menu, as people do. */
export async function visit(page, label) {
	await page.getByRole('navigation').getByRole('link', { name: label, exact: true }).click();
}

/** The dialog that is open. */
export const dialog = (page) => page.getByRole('dialog');

/** Waits until the sandbox's page shows this status. */
export async function status(page, word) {
	await seen(page.locator('main header').getByText(word, { exact: true }));
}

/** The text of a terminal, as it is seen. */
export const screen = (page) => page.getByTestId('terminal').locator('.xterm-rows').innerText();

/** Waits until the terminal is ready for keys. */
export async function prompt(page) {
	await seen(page.getByTestId('terminal').locator('.xterm-screen'));
	await until('a prompt', async () => /[$#]\s*$/.test((await screen(page)).trimEnd() + ' '));
}

/** Types a line into the terminal and waits for what it is to say. */
export async function type(page, line, said) {
	await page.getByTestId('terminal').locator('textarea').focus();
	await page.keyboard.type(line);
	await page.keyboard.press('Enter');
	await until(`${said} after ${line}`, async () => (said instanceof RegExp ? said.test(await screen(page)) : (await screen(page)).includes(said)));
}

/** The bytes of what a click downloads, and the name it gets. */
export async function download(page, click) {
	const [file] = await Promise.all([page.waitForEvent('download'), click()]);
	return file;
}

/** Says that a question was asked, what goes is said, and answers it. */
export async function confirm(page, verb, says) {
	await seen(dialog(page));
	assert.match(await dialog(page).innerText(), says);
	await dialog(page).getByRole('button', { name: verb, exact: true }).click();
	await gone(dialog(page));
}

/** Presses Tab until the focus is where it is wanted, as somebody without a mouse does. */
export async function tabTo(page, locator, key = 'Tab') {
	await seen(locator);
	for (let n = 0; n < 80; n++) {
		if (await locator.first().evaluate((node) => node === document.activeElement || node.contains(document.activeElement))) return;
		await page.keyboard.press(key);
	}
	throw new Error(`80 times ${key} do not lead to ${locator}`);
}

/** A row of a table, by something in it. */
export const row = (page, text) => page.getByRole('row').filter({ hasText: text });

/** Does one of the things that the menu of a row offers. */
export async function act(page, of, what) {
	await page.getByRole('button', { name: `What to do with ${of}`, exact: true }).click();
	await page.getByRole('menuitem', { name: what, exact: true }).click();
}

/** Logs out by the menu. */
export async function logOut(page, name) {
	await page.bringToFront(); // behind another tab a page draws once a second
	await page.getByRole('button', { name }).last().click();
	await page.getByRole('menuitem', { name: 'Log out' }).click();
	await page.waitForURL('**/login**');
}

/** Works in another team from here on. */
export async function switchTeam(page, name) {
	await page.bringToFront();
	await page.getByRole('button', { name: /^Team: / }).click();
	await page.getByRole('menuitem', { name, exact: true }).click();
	await seen(page.getByRole('button', { name: `Team: ${name}`, exact: true }));
}

/** How pages call what has no name. */
export const shortId = (id) => `${id.slice(0, id.indexOf('-') + 1)}${id.slice(-8)}`;

/** Goes to an address without loading the app anew, as by a link in it. */
export const jump = (page, to) =>
	page.evaluate((to) => {
		const link = document.createElement('a');
		link.href = to;
		document.body.append(link);
		link.click();
		link.remove();
	}, to);

/** What pages are called, by their addresses; a team's is called as the team is. */
export const headings = {
	'/dashboard': 'Sandboxes', '/dashboard/templates': 'Templates', '/dashboard/templates?tab=builds': 'Templates', '/dashboard/snapshots': 'Snapshots',
	'/dashboard/keys': 'API keys', '/dashboard/byoc': 'Your hosts', '/dashboard/team': '', '/dashboard/limits': 'Limits', '/dashboard/audit': 'Audit', '/dashboard/settings': 'Settings',
	'/admin/hosts': 'Hosts', '/admin/hosts?tab=byoc': 'Hosts', '/admin/quarantine': 'Quarantine', '/admin/users': 'Users', '/admin/teams': 'Teams', '/admin/audit': 'Audit'
};

/** Goes to a page of those, and waits until all of it is read. */
export async function open(page, path) {
	await jump(page, path);
	await page.waitForURL((url) => url.pathname + url.search === path);
	await seen(page.getByRole('heading', { level: 1, ...(headings[path] ? { name: headings[path], exact: true } : {}) }));
	await until(`${path} is read`, async () => !(await page.getByRole('status', { name: 'Loading' }).count()));
}

/** Copies by the dialog's button. All browsers here have one clipboard, which another may take meanwhile. */
export const copies = (page, text) =>
	until('it is copied', async () => {
		await dialog(page).getByRole('button', { name: /^Cop(y|ied)$/ }).click();
		return (await page.evaluate(() => navigator.clipboard.readText())) === text;
	});
