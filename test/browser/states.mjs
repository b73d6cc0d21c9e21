// Every page with something on it, with nothing, while it is read, and when that
// fails: seen, pictured and looked over by axe, in both themes and widths.
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { axe } from './lib/packages.mjs';
import { gone, jump, open, prompt, row, seen } from './lib/page.mjs';
import { unique, until } from './lib/world.mjs';

const widths = { wide: { width: 1440, height: 900 }, narrow: { width: 390, height: 844 } };
const themes = ['light', 'dark'];

export default async function (t, world) {
	await mkdir(world.shots, { recursive: true });
	const root = await world.logIn(world.admin);
	const busy = await world.signUp('Beate Busy');
	await world.api(busy, 'PATCH', `/v1/teams/${busy.team.id}`, { name: 'Harbour' });
	await world.join(busy, await world.signUp('Carl Crewman'), 'member');
	const idle = await world.signUp('Ida Idle');
	const box = await world.create(busy, 'research-agent');
	const paused = await world.create(busy, 'nightly-report');
	await world.api(busy, 'POST', `/v1/sandboxes/${paused.id}/pause`, {});
	await world.api(busy, 'POST', '/v1/snapshots', { sandbox_id: box.id, name: 'with-dependencies' });
	await world.api(busy, 'POST', '/v1/api-keys', { name: 'ci' });
	await world.sh(busy, box.id, 'mkdir -p src docs && echo "print(42)" >src/main.py && echo "# Notes" >notes.md && head -c 2000000 /dev/urandom >data.bin');
	const build = await world.api(busy, 'POST', '/v1/templates', { name: `tools-${unique()}`, recipe: 'FROM base\nRUN echo ready\n' });
	await until('the build', async () => (await world.api(busy, 'GET', `/v1/builds/${build.id}`)).status === 'ready', 60_000);
	for (const who of [busy, idle]) await world.api(root, 'PUT', `/v1/admin/teams/${who.team.id}/byoc`, { enabled: true });
	await world.api(busy, 'POST', '/v1/hosts', { type: 'byoc', name: 'rack-12', availability_zone: 'cellar' });

	/** The pages: what is seen with something on it, and with nothing; which calls they show. */
	const sandbox = `/dashboard/sandboxes/${box.id}`;
	const pages = [
		{ name: 'sandboxes', path: '/dashboard', data: (p) => row(p, 'research-agent'), empty: 'No sandboxes yet', call: '/v1/sandboxes' },
		{ name: 'sandbox-terminal', path: sandbox, data: (p) => p.getByTestId('terminal'), ready: prompt, call: `/v1/sandboxes/${box.id}` },
		{ name: 'sandbox-files', path: `${sandbox}?tab=files`, data: (p) => row(p, 'notes.md'), call: `/v1/sandboxes/${box.id}/files/list` },
		{ name: 'sandbox-metrics', path: `${sandbox}?tab=metrics`, data: (p) => p.locator('canvas, .uplot').or(p.getByText(/No figures|nothing measured|first figures/i)), call: `/v1/sandboxes/${box.id}/metrics` },
		{ name: 'sandbox-events', path: `${sandbox}?tab=events`, data: (p) => p.locator('main').getByText(/running|created|started/i), call: `/v1/sandboxes/${box.id}/events` },
		{ name: 'sandbox-paused', path: `/dashboard/sandboxes/${paused.id}`, data: (p) => p.getByText('It is paused, with everything in it.') },
		{ name: 'create', path: '/dashboard?new=1', data: (p) => p.getByRole('dialog').getByText('A machine of its own') },
		{ name: 'templates', path: '/dashboard/templates', data: (p) => row(p, 'base'), call: '/v1/templates' },
		{ name: 'builds', path: '/dashboard/templates?tab=builds', data: (p) => row(p, 'tools-'), empty: 'No builds yet', call: '/v1/builds' },
		{ name: 'build', path: `/dashboard/builds/${build.id}`, data: (p) => p.getByText('is ready.'), call: `/v1/builds/${build.id}`, also: `/v1/builds/${build.id}/logs` },
		{ name: 'snapshots', path: '/dashboard/snapshots', data: (p) => row(p, 'with-dependencies'), empty: 'No snapshots yet', call: '/v1/snapshots' },
		{ name: 'keys', path: '/dashboard/keys', data: (p) => row(p, 'ci'), empty: 'No keys yet', call: '/v1/api-keys' },
		{ name: 'byoc', path: '/dashboard/byoc', data: (p) => row(p, 'rack-12'), empty: 'No hosts yet', call: '/v1/hosts' },
		{ name: 'team', path: '/dashboard/team', data: (p) => row(p, busy.email), call: `/v1/teams/${busy.team.id}/members` },
		{ name: 'limits', path: '/dashboard/limits', data: (p) => p.getByText('of 200', { exact: true }), call: '/v1/limits' },
		{ name: 'audit', path: '/dashboard/audit', data: (p) => row(p, 'made the key ci'), empty: null, call: '/v1/audit-logs' },
		{ name: 'settings', path: '/dashboard/settings', data: (p) => p.getByText('this one'), call: '/v1/me/sessions' },
		{ name: 'admin-hosts', path: '/admin/hosts', who: 'root', data: (p) => p.getByRole('row').getByText('Online'), call: '/v1/hosts' },
		{ name: 'admin-hosts-byoc', path: '/admin/hosts?tab=byoc', who: 'root', data: (p) => row(p, 'rack-12'), call: '/v1/hosts' },
		{ name: 'admin-quarantine', path: '/admin/quarantine', who: 'root', data: (p) => p.getByText('Nothing is in quarantine'), call: '/v1/hosts' },
		{ name: 'admin-users', path: '/admin/users?search=b', who: 'root', data: (p) => row(p, busy.email), call: '/v1/admin/users' },
		{ name: 'admin-teams', path: '/admin/teams?search=Harbour', who: 'root', data: (p) => row(p, 'Harbour'), call: '/v1/admin/teams' },
		{ name: 'admin-audit', path: '/admin/audit', who: 'root', data: (p) => p.getByRole('row').first(), call: '/v1/admin/audit-logs' },
		{ name: 'login', path: '/login', who: 'nobody', data: (p) => p.getByRole('button', { name: 'Log in' }) },
		{ name: 'signup', path: '/signup', who: 'nobody', data: (p) => p.getByRole('button', { name: 'Create account' }) },
		{ name: 'device', path: '/login/device', data: (p) => p.getByRole('heading', { name: 'Let a program in' }) },
		{ name: 'email', path: '/login/email', who: 'nobody', data: (p) => p.getByRole('heading', { name: 'Confirm your address' }) },
		{ name: 'reset', path: '/reset', who: 'nobody', data: (p) => p.getByRole('button', { name: 'Send me a link' }) }
	];
	const tabs = { busy: await world.enter(busy), idle: await world.enter(idle), root: await world.enter(root), nobody: await (await world.browser()).newPage() };
	for (const tab of Object.values(tabs)) {
		await tab.addInitScript({ path: axe });
		await tab.reload();
	}

	/** Pictures and faults of a page as it stands, in both themes and widths. */
	async function look(page, name) {
		const faults = [];
		for (const theme of themes) {
			await page.emulateMedia({ colorScheme: theme, reducedMotion: 'reduce' });
			await until(`the ${theme} theme`, () => page.evaluate((theme) => document.documentElement.dataset.theme === theme, theme));
			for (const [width, size] of Object.entries(widths)) {
				await page.setViewportSize(size);
				// In short each theme and each width is pictured once.
				if (world.long || (theme === 'light') === (width === 'wide')) await page.screenshot({ path: join(world.shots, `${name}-${theme}-${width}.png`), animations: 'disabled' });
				if (await wider(page)) faults.push(`${name} is wider than its window of ${size.width}`);
			}
			await page.setViewportSize({ width: 360, height: 780 });
			if (await wider(page)) faults.push(`${name} is wider than 360`);
			await page.setViewportSize(widths.wide);
			// What is not about colours is the same in both themes.
			for (const v of await page.evaluate(async (rules) => {
				const { violations } = await globalThis.axe.run(document, { resultTypes: ['violations'], ...rules });
				return violations.filter((v) => ['serious', 'critical'].includes(v.impact)).map((v) => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => `${n.html.slice(0, 200)} ${n.any[0]?.message ?? ''}`).join(' | ')}`);
			}, theme === themes[0] ? {} : { runOnly: ['color-contrast'] })) faults.push(`${name} ${theme} ${v}`);
		}
		await page.emulateMedia({ colorScheme: 'light', reducedMotion: 'reduce' });
		assert.deepEqual(faults, []);
	}

	for (const p of pages) {
		await t.check(`${p.name} with something on it`, async () => {
			const page = tabs[p.who ?? 'busy'];
			if (p.who === 'nobody' || page.url() === 'about:blank') await page.goto(p.path);
			else {
				await jump(page, p.path);
				await page.waitForURL((url) => url.pathname === p.path.split('?')[0]);
			}
			await seen(p.data(page));
			await p.ready?.(page);
			await look(page, p.name);
		});
		if (p.empty) {
			await t.check(`${p.name} with nothing on it`, async () => {
				await jump(tabs.idle, p.path);
				await seen(tabs.idle.getByText(p.empty));
				if (world.long) await look(tabs.idle, `${p.name}-empty`);
			});
		}
		if (p.call) {
			await t.check(`${p.name} while it is read, and when that fails`, async () => {
				const page = tabs[p.who ?? 'busy'];
				let hold = true;
				const held = [];
				const matches = (url) => url.pathname === p.call || (p.also && url.pathname === p.also);
				await page.route(matches, (route) => {
					if (route.request().method() !== 'GET') return route.fallback();
					if (hold) return void held.push(route);
					return route.fulfill({ status: 503, json: { error: { code: 'unavailable', message: 'The database cannot be reached.', request_id: 'req-1' } } });
				});
				// From another page, so that nothing of it is there yet.
				await open(page, p.name === 'settings' ? '/dashboard/limits' : '/dashboard/settings');
				await jump(page, p.path);
				await seen(page.getByRole('status', { name: /Loading/ }).or(page.locator('.animate-shimmer')));
				if (world.long) await look(page, `${p.name}-loading`);
				hold = false;
				world.expect(503, /./);
				for (const route of held) await route.fulfill({ status: 503, json: { error: { code: 'unavailable', message: 'The database cannot be reached.', request_id: 'req-1' } } });
				const alert = page.getByRole('alert').filter({ hasText: 'The database cannot be reached.' });
				await seen(alert);
				if (world.long) await look(page, `${p.name}-failed`);
				await page.unroute(matches);
				// What happens in other teams mends the platform's pages, too, and may do so first.
				const platform = p.who === 'root';
				await alert.getByRole('button', { name: 'Try again' }).click(platform ? { timeout: 2000 } : {}).catch((e) => platform || Promise.reject(e));
				await seen(p.data(page));
				await gone(alert);
			});
		}
	}

	await t.check('the menu of a narrow page', async () => {
		const page = tabs.busy;
		await page.setViewportSize(widths.narrow);
		await page.goto('/dashboard');
		await page.getByRole('button', { name: 'Menu' }).click();
		await seen(page.getByRole('link', { name: 'Templates' }).last());
		await page.screenshot({ path: join(world.shots, 'menu-narrow.png'), animations: 'disabled' });
		await page.getByRole('link', { name: 'Templates' }).last().click();
		await page.waitForURL('**/dashboard/templates');
		assert.equal(await page.getByRole('button', { name: 'Close the menu' }).count(), 0);
	});

	for (const { id } of (await world.api(busy, 'GET', '/v1/hosts')).items) await world.api(busy, 'DELETE', `/v1/hosts/${id}`);
	await tabs.busy.goto('/dashboard/limits');
	for (const x of [box, paused]) await world.api(busy, 'DELETE', `/v1/sandboxes/${x.id}`);
}

/** Whether a page is wider than its window, once it had the time to fit into it. */
function wider(page) {
	return until('a page that fits', () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 1000).then(
		() => false,
		() => true
	);
}
