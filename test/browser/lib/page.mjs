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
