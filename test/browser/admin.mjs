// The platform's own pages.
import assert from 'node:assert/strict';
import { act, confirm, dialog, gone, row, seen, shortId, visit } from './lib/page.mjs';
import { unique, until } from './lib/world.mjs';

export default async function (t, world) {
	const person = `Sam ${unique()}`;
	const team = `Team of Sam ${unique()}`;
	const someone = await world.signUp(person);
	await world.api(someone, 'PATCH', `/v1/teams/${someone.team.id}`, { name: team });
	const admin = await world.logIn(world.admin);
	const page = await world.enter(admin);

	await t.step('a shield leads there, for admins alone', async () => {
		const theirs = await world.enter(someone);
		await seen(theirs.getByText('No sandboxes yet'));
		assert.equal(await theirs.getByRole('link', { name: 'Administration' }).count(), 0);
		for (const p of ['hosts', 'users', 'teams', 'audit']) {
			await theirs.goto(`/admin/${p}`);
			await seen(theirs.getByText('For platform admins'));
			assert.equal(await theirs.locator('main').getByRole('table').count(), 0);
		}
		await theirs.context().close();
		await page.getByRole('link', { name: 'Administration' }).click();
		await page.waitForURL('**/admin/hosts');
		await seen(page.getByText('Admin', { exact: true }));
		const bar = page.locator('aside').locator('xpath=..').locator('.bg-accent').first();
		const box = await bar.boundingBox();
		assert.ok(box && box.y === 0 && box.height >= 2 && box.height <= 6, `no bar on top: ${JSON.stringify(box)}`);
	});

	await t.step('hosts: the platform’s and the teams’, with their counts', async () => {
		await seen(page.getByRole('row').getByText('Online'));
		const pills = await page.getByRole('list', { name: 'How many are in which state' }).innerText();
		assert.match(pills, /1\s+online/);
		await world.api(admin, 'PUT', `/v1/admin/teams/${someone.team.id}/byoc`, { enabled: true });
		await world.api(someone, 'POST', '/v1/hosts', { type: 'byoc', name: 'sams-box' });
		await page.getByRole('button', { name: 'Teams’ own' }).click();
		await seen(row(page, 'sams-box').getByText(team));
		assert.equal(new URL(page.url()).search, '?tab=byoc');
		await page.reload();
		await seen(row(page, 'sams-box'));
		for (const h of (await world.api(someone, 'GET', '/v1/hosts')).items) await world.api(someone, 'DELETE', `/v1/hosts/${h.id}`);
		await page.reload();
		await gone(row(page, 'sams-box'));
	});

	await t.step('what would go with the host that all is on is said, and nothing goes', async () => {
		const box = await world.create(someone, 'sams-work').catch(() => null); // its team has hosts of its own alone
		assert.equal(box, null);
		await world.api(admin, 'PUT', `/v1/admin/teams/${someone.team.id}/byoc`, { enabled: false });
		const { id } = await world.create(someone, 'sams-work');
		await page.goto('/admin/hosts');
		const name = await row(page, 'Online').getByRole('cell').first().innerText();
		await act(page, name.split('\n')[0], 'Delete');
		await seen(dialog(page).getByTestId('losses').getByRole('listitem').filter({ hasText: shortId(id) }).getByText('Running'));
		await dialog(page).getByRole('button', { name: 'Keep' }).click();
		await gone(dialog(page));
		assert.equal((await world.api(someone, 'GET', `/v1/sandboxes/${id}`)).status, 'running');
		await world.api(someone, 'DELETE', `/v1/sandboxes/${id}`);
	});

	await t.step('users: find, lock out, let in, a link to a new password', async () => {
		await visit(page, 'Users');
		await page.locator('main').getByRole('searchbox').fill(someone.email);
		await until('that one alone', async () => (await page.getByRole('row').filter({ hasText: '@' }).count()) === 1);
		await act(page, person, 'Disable');
		await confirm(page, 'Disable', /logged out everywhere at once/);
		await seen(row(page, someone.email).getByText('Disabled'));
		await assert.rejects(world.logIn(someone));
		await act(page, person, 'Enable');
		await seen(row(page, someone.email).getByText('User', { exact: true }));
		await act(page, person, 'Make a platform admin');
		await seen(row(page, someone.email).getByText('Platform admin'));
		await act(page, person, 'No longer an admin');
		await confirm(page, 'No longer an admin', /no longer sees hosts, users and teams/);
		await seen(row(page, someone.email).getByText('User', { exact: true }));
		await act(page, person, 'Link to a new password');
		const link = await dialog(page).getByTestId('secret').innerText();
		await dialog(page).getByRole('button', { name: 'Done' }).click();
		const context = await world.browser();
		const guest = await context.newPage();
		await guest.goto(link.replace(new URL(link).origin, world.url));
		await guest.getByLabel('New password').fill('sams new password');
		await guest.getByRole('button', { name: 'Set it' }).click();
		await seen(guest.getByText('The password is set.'));
		Object.assign(someone, await world.logIn({ ...someone, password: 'sams new password' }));
		await context.close();
	});

	await t.step('teams: limits', async () => {
		await visit(page, 'Teams');
		await page.locator('main').getByRole('searchbox').fill(team);
		await act(page, team, 'Limits');
		await dialog(page).getByLabel('Sandboxes').fill('3');
		await dialog(page).getByRole('button', { name: 'Set' }).click();
		await gone(dialog(page));
		assert.equal((await world.api(someone, 'GET', '/v1/limits')).sandboxes.limit, 3);
		const theirs = await world.enter(someone, '/dashboard/limits');
		await seen(theirs.getByText('of 3', { exact: true }));
		await theirs.context().close();
	});

	await t.step('audit of all teams', async () => {
		await visit(page, 'Audit');
		await seen(page.getByText(person).first());
		await page.getByRole('link', { name: 'Dashboard' }).click();
		await page.waitForURL('**/dashboard');
	});
}
