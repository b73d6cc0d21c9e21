// A login at a provider of identities, from the button and back to it.
import assert from 'node:assert/strict';
import { logOut, seen } from './lib/page.mjs';
import { unique } from './lib/world.mjs';

export default async function (t, world) {
	const subject = unique();
	const person = { Subject: subject, Email: `pia.${subject}@example.com`, EmailVerified: true, Name: 'Pia Provider' };
	const context = await world.browser();
	const page = await context.newPage();
	const press = () => page.getByRole('main').getByText('Company').click();

	await t.step('who says no there is told so here', async () => {
		world.allow(await t.ask('identity'));
		await page.goto('/login');
		await press();
		await page.waitForURL('**/login?error=*');
		await seen(page.getByRole('alert').getByText('The login at the provider did not work.'));
	});

	await t.step('the first login makes an account with a team', async () => {
		await t.ask('identity', person);
		await page.goto('/login');
		await press();
		await page.waitForURL('**/dashboard');
		await seen(page.getByText('No sandboxes yet'));
		await seen(page.getByRole('button', { name: 'Pia Provider' }));
		assert.doesNotMatch(page.url(), /code=|state=|token/);
		await page.reload();
		await seen(page.getByText('No sandboxes yet'));
	});

	await t.step('the next one leads to the same account', async () => {
		await logOut(page, 'Pia Provider');
		await press();
		await page.waitForURL('**/dashboard');
		await page.goto('/dashboard/settings');
		await seen(page.getByText(person.Email));
		await seen(page.getByRole('button', { name: /Unlink|Remove/ }).or(page.getByText(/linked/i)));
	});

	await t.step('an address that has an account is no way into it', async () => {
		const other = await world.signUp('Otto Other');
		await t.ask('identity', { ...person, Subject: unique(), Email: other.email });
		await logOut(page, 'Pia Provider');
		await press();
		await page.waitForURL('**/login?error=link_required');
		await seen(page.getByRole('alert').getByText('There is an account with your address already.'));
	});

	await t.step('an identity is linked in the settings, and leads there from then on', async () => {
		const other = await world.signUp('Lisa Linker');
		await t.ask('identity', { ...person, Subject: unique(), Email: 'somewhere.else@example.com' });
		await page.getByLabel('Email').fill(other.email);
		await page.getByLabel('Password').fill(other.password);
		await page.getByRole('button', { name: 'Log in', exact: true }).click();
		await page.waitForURL('**/dashboard');
		await page.goto('/dashboard/settings');
		await page.getByRole('listitem').filter({ hasText: 'Company' }).getByRole('button').click();
		await page.waitForURL((url) => url.pathname === '/dashboard/settings');
		await seen(page.getByRole('listitem').filter({ hasText: 'Company' }).getByText('somewhere.else@example.com'));
		await logOut(page, 'Lisa Linker');
		await press();
		await page.waitForURL('**/dashboard');
		await seen(page.getByRole('button', { name: 'Lisa Linker' }));
	});
	await context.close();
}
