// Every page as everybody: what is shown can be used, what cannot says why.
import assert from 'node:assert/strict';
import { headings, jump, open, seen } from './lib/page.mjs';
import { until } from './lib/world.mjs';

const pages = Object.keys(headings).filter((p) => p.startsWith('/dashboard'));
const platform = Object.keys(headings).filter((p) => p.startsWith('/admin'));

/** What a role may not do is there and says why; for the others it works. */
const managers = { '/dashboard/team': ['Rename', 'Add somebody'], '/dashboard/byoc': ['Add a host'], '/dashboard/audit': ['Export'] };

export default async function (t, world) {
	const root = await world.logIn(world.admin);
	const owner = await world.signUp('Owen Owner');
	const admin = await world.join(owner, await world.signUp('Anna Admin'), 'admin');
	const member = await world.join(owner, await world.signUp('Max Member'), 'member');
	await world.api(owner, 'POST', '/v1/api-keys', { name: 'of-the-owner' });
	// A host that never joins, so that sandboxes of the team could be nowhere: the switch comes after the sandbox.
	const box = await world.create(owner, 'shared');
	await world.api(root, 'PUT', `/v1/admin/teams/${owner.team.id}/byoc`, { enabled: true });

	for (const [role, who] of Object.entries({ owner, admin, member })) {
		const page = await world.enter(who);
		await seen(page.getByRole('heading', { level: 1 }));
		await t.check(`pages of the ${role}`, async () => {
			for (const path of pages) {
				await open(page, path);
				assert.equal(await page.getByRole('alert').count(), 0, `${path} as ${role}`);
				for (const name of managers[path] ?? []) {
					const button = page.getByRole('button', { name, exact: true });
					if (path === '/dashboard/byoc' && !(await button.count())) continue; // nothing there is for members
					const off = (await button.getAttribute('aria-disabled')) === 'true';
					assert.equal(off, role === 'member', `${name} as ${role}`);
					if (off) assert.match(await button.getAttribute('title'), /Only admins and the owner/);
				}
			}
			await open(page, '/dashboard/team');
			await seen(page.getByRole('button', { name: role === 'owner' ? 'Delete the team' : 'Leave', exact: true }));
			assert.equal(await page.getByRole('button', { name: 'Delete the team' }).count(), role === 'owner' ? 1 : 0);
			assert.equal(await page.getByRole('button', { name: 'Leave', exact: true }).count(), role === 'owner' ? 0 : 1);
			assert.equal(await page.getByRole('link', { name: 'Administration' }).count(), 0);
		});
		await t.check(`the sandbox as the ${role}`, async () => {
			await page.goto(`/dashboard/sandboxes/${box.id}?tab=files`);
			await seen(page.locator('main header').getByText('Running', { exact: true }));
			for (const name of ['Pause', 'Snapshot', 'Fork', 'Delete']) await seen(page.getByRole('button', { name, exact: true }));
		});
		await t.check(`every control of the ${role} is one that the API allows`, async () => {
			await open(page, '/dashboard/team');
			await seen(page.getByRole('row').filter({ hasText: member.email }));
			await page.getByRole('button', { name: 'What to do with Max Member' }).click();
			for (const item of await page.getByRole('menuitem').all()) {
				const off = (await item.getAttribute('aria-disabled')) === 'true';
				assert.equal(off, role === 'member', `${await item.innerText()} as ${role}`);
			}
			await page.keyboard.press('Escape');
			// Keys: whoever is offered to revoke one may.
			await open(page, '/dashboard/keys');
			await page.getByRole('button', { name: 'What to do with of-the-owner' }).click();
			const revoke = page.getByRole('menuitem', { name: 'Revoke' });
			const offered = (await revoke.count()) > 0 && (await revoke.getAttribute('aria-disabled')) !== 'true';
			const refused = role === 'member' && (await world.api(who, 'DELETE', `/v1/api-keys/${(await world.api(owner, 'GET', '/v1/api-keys')).items[0].id}`).then(() => false, (e) => e.status === 403));
			assert.equal(offered, !refused, `revoking is offered: ${offered}, refused: ${refused}`);
			await page.keyboard.press('Escape');
		});
		await t.check(`dead links of the ${role}`, async () => {
			const links = new Set();
			for (const path of ['/dashboard', '/dashboard/templates', '/dashboard/team', '/dashboard/settings']) {
				await open(page, path);
				for (const a of await page.getByRole('link').all()) links.add(await a.getAttribute('href'));
			}
			assert.ok(links.size >= 8, [...links].join());
			for (const href of links) {
				if (!href || href.startsWith('#')) continue; // to a place on the page, or nowhere while it cannot be used
				const got = await page.context().request.get(href);
				assert.ok(got.ok(), `${href}: ${got.status()}`);
			}
		});
		await page.context().close();
	}

	await t.check('pages of the platform admin', async () => {
		const page = await world.enter(root);
		await seen(page.getByRole('heading', { level: 1 }));
		for (const path of [...pages.filter((p) => p !== '/dashboard/byoc'), ...platform]) {
			await open(page, path);
			assert.equal(await page.getByRole('alert').count(), 0, path);
		}
		await page.context().close();
	});

	await t.check('somebody without a team', async () => {
		const alone = await world.signUp('Solo Nobody');
		await world.api(alone, 'DELETE', `/v1/teams/${alone.team.id}`);
		const page = await world.enter({ ...alone, team: null });
		const create = page.getByRole('button', { name: 'New sandbox' });
		await seen(create);
		assert.equal(await create.getAttribute('aria-disabled'), 'true');
		assert.match(await create.getAttribute('title'), /You are in no team/);
		for (const path of pages.filter((p) => p !== '/dashboard/byoc')) {
			await jump(page, path);
			await page.waitForURL((url) => url.pathname + url.search === path);
			await seen(page.getByRole('heading', { level: 1 }));
			await until(`${path} is read`, async () => !(await page.getByRole('status', { name: 'Loading' }).count()));
		}
	});

	await world.api(root, 'PUT', `/v1/admin/teams/${owner.team.id}/byoc`, { enabled: false });
	await world.api(owner, 'DELETE', `/v1/sandboxes/${box.id}`);
}
