// Machines of a team's own, from the switch to the second step of the deletion.
import assert from 'node:assert/strict';
import { act, copies, dialog, gone, row, seen, shortId, switchTeam, visit } from './lib/page.mjs';
import { unique, until } from './lib/world.mjs';

export default async function (t, world) {
	const team = `Machinists ${unique()}`;
	const owner = await world.signUp('Olga Owner');
	const member = await world.join(owner, await world.signUp('Mia Member'), 'member');
	await world.api(owner, 'PATCH', `/v1/teams/${owner.team.id}`, { name: team });
	const admin = await world.logIn(world.admin);
	const page = await world.enter(owner);
	let host = '';

	await t.step('there is none of it until an admin allows it', async () => {
		await seen(page.getByText('No sandboxes yet'));
		assert.equal(await page.getByRole('link', { name: 'Your hosts' }).count(), 0);
		const console_ = await world.enter(admin, '/admin/teams');
		await seen(row(console_, team).getByText('The platform’s'));
		await act(console_, team, 'Let it bring its own hosts');
		await seen(row(console_, team).getByText('Its own'));
		await console_.context().close();
		await page.reload();
		await visit(page, 'Your hosts');
		await seen(page.getByText('No hosts yet'));
	});

	await t.step('register one: the token is shown once', async () => {
		await page.getByRole('button', { name: 'Add a host' }).click();
		await dialog(page).getByLabel('Name').fill('rack-7');
		await dialog(page).getByLabel('Zone').fill('cellar');
		await dialog(page).getByRole('button', { name: 'Get the command' }).click();
		const command = await dialog(page).getByTestId('secret').innerText();
		const token = /--registration-token (\S+)/.exec(command)?.[1];
		assert.ok(token, `no token in ${command}`);
		assert.ok(await dialog(page).locator('path[stroke-dasharray]').first().evaluate((p) => getComputedStyle(p).animationName === 'draw'), 'no check mark draws itself');
		// Neither a click beside it nor Escape takes it away unread.
		await page.keyboard.press('Escape');
		await page.mouse.click(4, 4);
		await seen(dialog(page).getByTestId('secret'));
		await page.context().grantPermissions(['clipboard-read', 'clipboard-write'], { origin: world.url });
		await copies(page, command);
		await seen(dialog(page).getByText('Copied'));
		await dialog(page).getByRole('button', { name: 'Done' }).click();
		await gone(dialog(page));
		await seen(row(page, 'rack-7').getByText('Pending'));
		await page.reload();
		await seen(row(page, 'rack-7'));
		assert.ok(!(await page.content()).includes(token), 'the token is still there after a reload');
		host = (await world.api(owner, 'GET', '/v1/hosts')).items.find((h) => h.name === 'rack-7').id;
	});

	await t.step('a member sees them and cannot touch them', async () => {
		const theirs = await world.enter(member);
		await seen(theirs.getByText('No sandboxes yet'));
		const entry = theirs.getByRole('navigation').getByText('Your hosts');
		await seen(entry);
		const hint = await entry.evaluate((n) => n.closest('[title]')?.getAttribute('title') ?? '');
		if (!hint) {
			await entry.click();
			const add = theirs.getByRole('button', { name: 'Add a host' });
			await seen(add);
			assert.equal(await add.getAttribute('aria-disabled'), 'true');
			assert.match(await add.getAttribute('title'), /Only admins and the owner/);
			await theirs.getByRole('button', { name: 'What to do with rack-7' }).click();
			for (const name of ['Drain', 'Delete']) assert.equal(await theirs.getByRole('menuitem', { name, exact: true }).getAttribute('aria-disabled'), 'true', name);
		} else assert.match(hint, /admins|owner/);
		await theirs.context().close();
	});

	await t.step('another token for one that has not joined', async () => {
		await act(page, 'rack-7', 'Let it join');
		await dialog(page).getByRole('button', { name: 'Get the command' }).click();
		await seen(dialog(page).getByTestId('secret'));
		await dialog(page).getByRole('button', { name: 'Done' }).click();
		await gone(dialog(page));
	});

	await t.step('nothing of another team is there', async () => {
		const second = await world.api(owner, 'POST', '/v1/teams', { name: 'No machines' });
		await page.reload();
		await switchTeam(page, 'No machines');
		await seen(page.getByText('No sandboxes yet'));
		assert.equal(await page.getByRole('link', { name: 'Your hosts' }).count(), 0);
		await switchTeam(page, team);
		await world.api(owner, 'DELETE', `/v1/teams/${second.id}`);
	});

	await t.step('delete: what is lost is shown first, and asked for twice', async () => {
		await t.ask('fill', { team: owner.team.id, host, name: 'lost with it', sandboxes: 3 });
		await visit(page, 'Your hosts');
		await act(page, 'rack-7', 'Delete');
		const losses = dialog(page).getByTestId('losses');
		await seen(losses);
		assert.match(await dialog(page).innerText(), /3 sandboxes and 0 snapshots would be lost/);
		const { items } = await world.api(owner, 'GET', '/v1/sandboxes');
		assert.equal(items.length, 3);
		for (const { id, metadata } of items) await seen(losses.getByRole('listitem').filter({ hasText: shortId(id) }).filter({ hasText: metadata.name }).getByText('Paused'));
		const go = dialog(page).getByRole('button', { name: 'Delete with everything' });
		assert.equal(await go.getAttribute('aria-disabled'), 'true');
		await go.click({ force: true });
		assert.equal((await world.api(owner, 'GET', `/v1/hosts/${host}`)).name, 'rack-7');
		await dialog(page).getByLabel('I have read this').check();
		await go.click();
		await gone(dialog(page));
		await seen(page.getByText('rack-7 is deleted.'));
		await seen(page.getByText('No hosts yet'));
		await visit(page, 'Sandboxes');
		await seen(page.getByText('No sandboxes yet'));
	});

	await t.step('without anything on it, one step is enough', async () => {
		const { host: made } = await world.api(owner, 'POST', '/v1/hosts', { type: 'byoc', name: 'rack-8' }).then((r) => ({ host: r.host ?? r }));
		await visit(page, 'Your hosts');
		await act(page, 'rack-8', 'Delete');
		await seen(dialog(page).getByText('Nothing would be lost with it'));
		await dialog(page).getByRole('button', { name: 'Delete', exact: true }).click();
		await gone(dialog(page));
		await until('it is gone', async () => !(await world.api(owner, 'GET', '/v1/hosts')).items.some((h) => h.id === made.id && h.status !== 'deleted'));
	});
}
