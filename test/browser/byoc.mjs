// A machine of a team's own: from the command on the page to a sandbox on it, and away again.
import assert from 'node:assert/strict';
import { act, dialog, gone, row, seen, shortId, visit } from './lib/page.mjs';
import { until } from './lib/world.mjs';

export default async function (t, world) {
	const owner = await world.signUp('Berta Byoc');
	const admin = await world.logIn(world.admin);
	await world.api(admin, 'PUT', `/v1/admin/teams/${owner.team.id}/byoc`, { enabled: true });
	const page = await world.enter(owner);
	let box;

	await t.step('the command of the page makes a host of a machine, which turns online by itself', async () => {
		await visit(page, 'Your hosts');
		await page.getByRole('button', { name: 'Add a host' }).first().click();
		await dialog(page).getByLabel('Name').fill('real-rack');
		await dialog(page).getByRole('button', { name: 'Get the command' }).click();
		const command = await dialog(page).getByTestId('secret').innerText();
		await dialog(page).getByRole('button', { name: 'Done' }).click();
		await gone(dialog(page));
		await seen(row(page, 'real-rack').getByText('Pending'));
		let loads = 0;
		page.on('load', () => loads++);
		await t.ask('join', command.replace(/^sudo /, ''));
		const began = Date.now();
		await row(page, 'real-rack').getByText('Online').first().waitFor({ state: 'visible', timeout: 60_000 });
		assert.equal(loads, 0);
		t.log(`online on the page ${Date.now() - began} ms after the agent was started`);
		await seen(row(page, 'real-rack').getByText(/CPUs/));
		// What the page showed is spent.
		await assert.rejects(world.api(null, 'POST', '/v1/hosts/register', { registration_token: /--registration-token (\S+)/.exec(command)[1], csr: 'x' }));
	});

	await t.step('its sandboxes run there', async () => {
		box = await until('a sandbox', () => world.create(owner, 'on-our-own-iron').catch((e) => void (e.status === 503 || assert.fail(e))), 60_000);
		assert.equal(box.host_id ?? (await world.api(owner, 'GET', `/v1/sandboxes/${box.id}`)).host_id ?? '', box.host_id ?? '');
		assert.equal(await world.sh(owner, box.id, 'echo here'), 'here\n');
		await until('one on the page', async () => (await row(page, 'real-rack').innerText()).includes('\t1\t') || (await row(page, 'real-rack').getByRole('cell', { name: '1', exact: true }).count()) > 0);
	});

	await t.step('delete it, with what runs on it; the agent ends', async () => {
		await act(page, 'real-rack', 'Delete');
		const loss = dialog(page).getByTestId('losses').getByRole('listitem').filter({ hasText: shortId(box.id) });
		await seen(loss.getByText('Running'));
		await seen(loss.getByText('on-our-own-iron'));
		const go = dialog(page).getByRole('button', { name: 'Delete with everything' });
		assert.equal(await go.getAttribute('aria-disabled'), 'true');
		await dialog(page).getByLabel('I have read this').check();
		await go.click();
		await gone(dialog(page));
		await seen(page.getByText('No hosts yet'));
		await visit(page, 'Sandboxes');
		await seen(page.getByText('No sandboxes yet'));
		await t.ask('left');
	});
	await page.context().close();
}
