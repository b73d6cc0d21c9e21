// Keys, people, and the account itself.
import assert from 'node:assert/strict';
import { act, confirm, copies, dialog, gone, row, seen, visit } from './lib/page.mjs';
import { unique, until } from './lib/world.mjs';

export default async function (t, world) {
	const owner = await world.signUp('Olive Owner');
	const friend = await world.signUp('Fred Friend');
	await world.api(owner, 'PATCH', `/v1/teams/${owner.team.id}`, { name: 'Orchard' });
	const page = await world.enter(owner);

	await t.step('a key is shown once, and works', async () => {
		await visit(page, 'API keys');
		await page.getByRole('button', { name: 'Make the first one' }).click();
		await dialog(page).getByLabel('Name').fill('ci');
		await dialog(page).getByLabel('It may').selectOption('read');
		await dialog(page).getByRole('button', { name: 'Make the key' }).click();
		const key = await dialog(page).getByTestId('secret').innerText();
		await page.context().grantPermissions(['clipboard-read', 'clipboard-write'], { origin: world.url });
		await copies(page, key);
		const call = (method, body) => fetch(`${world.url}/v1/sandboxes`, { method, headers: { 'X-API-Key': key, 'Content-Type': 'application/json' }, body });
		assert.equal((await call('GET')).status, 200);
		assert.equal((await call('POST', '{"template":"base"}')).status, 403, 'a key to read makes sandboxes');
		await dialog(page).getByRole('button', { name: 'I have kept it' }).click();
		await seen(row(page, 'ci'));
		await page.reload();
		await seen(row(page, 'ci'));
		assert.ok(!(await page.content()).includes(key), 'the key is still there after a reload');
		await act(page, 'ci', 'Revoke');
		await confirm(page, 'Revoke', /refused from the next request on/);
		await seen(page.getByText('No keys yet'));
		assert.equal((await call('GET')).status, 401);
	});

	await t.step('add somebody by the beginning of their address', async () => {
		await visit(page, 'Team');
		await page.getByRole('button', { name: 'Add somebody' }).click();
		const field = dialog(page).getByLabel('Email');
		await field.pressSequentially(friend.email.slice(0, friend.email.indexOf('@') + 3));
		await page.getByRole('option').filter({ hasText: friend.email }).click();
		assert.equal(await field.inputValue(), friend.email);
		await dialog(page).getByRole('button', { name: 'Add', exact: true }).click();
		await gone(dialog(page));
		await seen(row(page, friend.email).getByText('member', { exact: true }));
	});

	await t.step('roles', async () => {
		await act(page, 'Fred Friend', 'Make an admin');
		await seen(row(page, friend.email).getByText('admin', { exact: true }));
		await act(page, 'Fred Friend', 'Make a member');
		await seen(row(page, friend.email).getByText('member', { exact: true }));
		await page.getByRole('button', { name: 'What to do with Olive Owner' }).click();
		assert.equal(await page.getByRole('menuitem', { name: 'Remove' }).getAttribute('aria-disabled'), 'true');
		await page.keyboard.press('Escape');
	});

	await t.step('somebody without an account comes by a link', async () => {
		const email = `nina.${unique()}@example.com`;
		await page.getByRole('button', { name: 'Add somebody' }).click();
		await dialog(page).getByLabel('Email').fill(email);
		await dialog(page).getByRole('button', { name: 'Invite by link' }).click();
		const link = await dialog(page).getByTestId('secret').innerText();
		assert.ok(new URL(link).hash.length > 10 && !new URL(link).search, `a server would see the token of ${link}`);
		await dialog(page).getByRole('button', { name: 'Done' }).click();
		const context = await world.browser();
		const guest = await context.newPage();
		await guest.goto(link.replace(new URL(link).origin, world.url));
		const name = guest.getByLabel('Name');
		const signUp = guest.getByRole('link', { name: /Sign up|Create an account/i });
		await seen(name.or(signUp));
		if (!(await name.count())) await signUp.first().click();
		await name.fill('Nina New');
		if (await guest.getByLabel('Email').isEditable()) await guest.getByLabel('Email').fill(email);
		assert.equal(await guest.getByLabel('Email').inputValue(), email);
		await guest.getByLabel('Password').fill('correct horse battery');
		await guest.getByRole('button', { name: 'Create account' }).click();
		await guest.waitForURL('**/dashboard');
		await until('a member', async () => (await world.api(owner, 'GET', `/v1/teams/${owner.team.id}/members`)).items.some((m) => m.email === email));
		await seen(row(page, email));
		await context.close();
		await act(page, 'Nina New', 'Remove');
		await confirm(page, 'Remove', /loses access at once/);
		await gone(row(page, email));
	});

	await t.step('leave', async () => {
		const now = await world.api(friend, 'POST', '/v1/auth/switch-team', { team_id: owner.team.id });
		const theirs = await world.enter({ ...friend, team: now.team }, '/dashboard/team');
		await theirs.getByRole('button', { name: 'Leave', exact: true }).click();
		await confirm(theirs, 'Leave', /Somebody has to add you again/).catch((e) => {
			if (!/Execution context|closed/.test(String(e))) throw e;
		});
		await seen(theirs.getByRole('button', { name: 'Team: Fred Friend' }).or(theirs.getByRole('button', { name: /^Team: (?!Orchard)/ })));
		await gone(row(page, friend.email));
		await theirs.context().close();
	});

	await t.step('settings: name, sessions, password', async () => {
		const elsewhere = await world.enter(owner);
		await visit(page, 'Settings');
		await page.getByLabel('Name').first().fill('Olive O. Owner');
		await page.getByRole('button', { name: 'Save', exact: true }).click();
		await seen(page.getByRole('button', { name: 'Olive O. Owner' }).last());
		assert.equal((await world.api(owner, 'GET', '/v1/me')).user.name, 'Olive O. Owner');
		await page.reload();
		const sessions = page.getByRole('table');
		await seen(sessions.getByText('this one'));
		assert.match(await sessions.innerText(), /Chrome on Linux/);
		const before = await sessions.getByRole('button', { name: 'End' }).count();
		assert.ok(before > 0, 'the other session is not there');
		world.expect(401, /./);
		await page.getByLabel('Current password').fill(owner.password);
		await page.getByLabel('New password').fill('another horse battery');
		await page.getByRole('button', { name: 'Change the password' }).click();
		await seen(page.getByText('The password is changed.'));
		await gone(sessions.getByRole('button', { name: 'End' }));
		// It notices by itself, and shows nothing of theirs any more.
		await elsewhere.waitForURL('**/login**');
		owner.password = 'another horse battery';
		await elsewhere.context().close();
	});

	await t.step('a new team, renamed, and deleted', async () => {
		await page.getByLabel('Name').last().fill('Short lived');
		await page.getByRole('button', { name: 'Make the team' }).click();
		await seen(page.getByRole('button', { name: 'Team: Short lived' }));
		await visit(page, 'Team');
		await page.getByRole('button', { name: 'Rename' }).click();
		await dialog(page).getByLabel('Name').fill('Shorter lived');
		await dialog(page).getByRole('button', { name: 'Rename' }).click();
		await seen(page.getByRole('button', { name: 'Team: Shorter lived' }));
		await page.getByRole('button', { name: 'Delete the team' }).click();
		const go = dialog(page).getByRole('button', { name: 'Delete the team' });
		assert.match(await dialog(page).innerText(), /Every sandbox, snapshot, template and key/);
		assert.equal(await go.getAttribute('aria-disabled'), 'true');
		await dialog(page).getByLabel(/^Write/).fill('Shorter lived');
		await go.click();
		await seen(page.getByRole('button', { name: 'Team: Orchard' }).or(page.getByRole('button', { name: 'Team: none' })));
		const now = await world.logIn(owner);
		assert.deepEqual((await world.api(now, 'GET', '/v1/teams')).items.map((x) => x.name), ['Orchard']);
	});
}
