// Every page that there is, as everybody, when the server cannot be reached or refuses
// everything: each shows a state for people.
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { jump, seen } from './lib/page.mjs';

const routes = new URL('../../web/src/routes/', import.meta.url);
const uuid = '0190b6a0-0000-7000-8000-000000000001';
/** What stands for the ids in addresses: nothing of it exists. */
const ids = { sandboxes: `sb-${uuid}`, builds: `bld-${uuid}`, templates: `tpl-${uuid}`, byoc: `host-${uuid}`, hosts: `host-${uuid}` };

/** What goes wrong with each call; the error's text is what a page has to show. */
const faults = {
	offline: 'cannot be reached',
	401: 'Nobody is logged in.',
	403: 'You may not do this.',
	404: 'There is no such thing.',
	500: 'Something failed on our side.'
};

export default async function (t, world) {
	const paths = (await readdir(routes, { recursive: true }))
		.filter((file) => file.endsWith('+page.svelte'))
		.map((file) => '/' + file.split('/').slice(0, -1).join('/'))
		.map((path) => path.replace(/(\w+)\/\[id\]/, (_, kind) => `${kind}/${ids[kind]}`))
		.sort();
	assert.ok(paths.length >= 26 && !paths.join().includes('[') && !paths.join().includes('undefined'), paths.join());

	const root = await world.logIn(world.admin);
	const owner = await world.signUp('Fay Owner');
	const admin = await world.join(owner, await world.signUp('Fred Admin'), 'admin');
	const member = await world.join(owner, await world.signUp('Fiona Member'), 'member');
	const alone = { ...(await world.signUp('Finn Nobody')), team: null };
	const theirs = (await world.api(alone, 'GET', '/v1/teams')).items[0];
	await world.api(alone, 'DELETE', `/v1/teams/${theirs.id}`);
	await world.api(root, 'PUT', `/v1/admin/teams/${owner.team.id}/byoc`, { enabled: true });
	for (const status of [401, 403, 404, 500]) world.expect(status, /^\/v1\//);

	const roles = { nobody: null, owner, admin, member, 'somebody without a team': alone, 'a platform admin': root };
	const pages = {};
	/** What goes wrong for whom now; nothing when empty. */
	const now = {};
	for (const [role, who] of Object.entries(roles)) {
		const viewport = { width: 800, height: 400 }; // little to draw
		const page = who ? await world.enter(who, '/dashboard', { viewport }) : await (await world.browser({ viewport })).newPage();
		if (!who) await page.goto('/login');
		await page.context().route('**/v1/**', (route) => {
			const fault = now[role];
			const request = route.request();
			// A session that is refused can be renewed, or the page would be another one.
			if (!fault || (request.method() !== 'GET' && fault !== 'offline')) return route.continue();
			if (fault === 'offline') return route.abort('internetdisconnected');
			return route.fulfill({ status: Number(fault), json: { error: { code: 'made_up', message: faults[fault], request_id: 'req-1' } } });
		});
		pages[role] = page;
	}

	const kinds = Object.keys(faults);
	const alike = ['owner', 'admin', 'somebody without a team', 'nobody'];
	let combinations = 0;
	const began = Date.now();
	for (const fault of kinds) {
		await t.check(`everything answers ${fault}`, async () => {
			const wrong = await Promise.all(
				Object.entries(pages).map(async ([role, page]) => {
					const found = [];
					now[role] = '';
					await page.goto(roles[role] ? '/dashboard/settings' : '/reset');
					await seen(page.getByRole('heading', { level: 1 }));
					now[role] = fault;
					for (const [n, path] of paths.entries()) {
						// In short, those who differ little see one fault on each page, another one on the next.
						if (!world.long && alike.includes(role) && (n + alike.indexOf(role)) % kinds.length !== kinds.indexOf(fault)) continue;
						combinations++;
						await jump(page, path);
						const why = judge(role, path, fault, await settled(page, leads(role, path)));
						if (why) found.push(`${path} as ${role}: ${why}`);
					}
					now[role] = '';
					return found;
				})
			);
			assert.deepEqual(wrong.flat(), []);
		});
	}
	t.log(`${combinations} combinations of ${paths.length} pages, ${Object.keys(roles).length} roles and ${kinds.length} faults in ${Date.now() - began} ms`);

	await t.check('what fails is tried again by a click, and a session that ended leads to the login', async () => {
		const page = pages.member;
		now.member = '500';
		await jump(page, '/dashboard/keys');
		await seen(page.getByRole('alert').getByText(faults[500]));
		now.member = '';
		await page.getByRole('alert').getByRole('button', { name: 'Try again' }).click();
		await seen(page.getByText('No keys yet').or(page.getByRole('table')));
		await world.api(await world.logIn(member), 'POST', '/v1/me/password', { current_password: member.password, new_password: `${member.password}!` });
		await jump(page, '/dashboard/limits');
		await page.waitForURL('**/login?next=*');
		await seen(page.getByRole('button', { name: 'Log in' }));
	});
	await world.api(root, 'PUT', `/v1/admin/teams/${owner.team.id}/byoc`, { enabled: false });
}

/** Where an address leads to. */
function leads(role, path) {
	if (/^\/(dashboard|admin)/.test(path) && role === 'nobody') return '/login';
	if (path === '/' || ((path === '/login' || path === '/signup') && role !== 'nobody')) return role === 'nobody' ? '/login' : '/dashboard';
	return path === '/admin' && role === 'a platform admin' ? '/admin/hosts' : path;
}

/** Waits until the page of an address has come to rest, and says what it shows then. */
function settled(page, path) {
	return page.evaluate(async (path) => {
		const moving = '[role=status][aria-label^=Loading], .animate-shimmer, main .animate-spin, main .animate-pulse';
		const end = performance.now() + 8000;
		let calm = 0;
		let last = '';
		for (;;) {
			await new Promise((done) => setTimeout(done, 25));
			const late = performance.now() > end;
			const busy = location.pathname !== path || Boolean(document.querySelector(moving));
			if (busy && !late) {
				calm = 0;
				continue;
			}
			const text = document.querySelector('main')?.innerText ?? '';
			calm = text !== last || !text.trim() ? 0 : calm + 1;
			last = text;
			if (calm >= 2 || late) {
				return {
					busy, text: last, path: location.pathname, title: document.title,
					alerts: [...document.querySelectorAll('[role=alert]')].map((a) => a.innerText),
					heading: Boolean(document.querySelector('main h1, main h2, [role=dialog] h2'))
				};
			}
		}
	}, path);
}

/** What is wrong with what a page shows; empty when nothing is. */
function judge(role, path, fault, { busy, text, path: at, title, alerts, heading }) {
	const inside = /^\/(dashboard|admin)/.test(path);
	const platform = path.startsWith('/admin');
	if (at !== leads(role, path)) return `it leads to ${at}`;
	if (busy) return 'it loads for ever';
	if (text.trim().length < 20) return `it is blank: ${JSON.stringify(text)}`;
	if (!/ · Skerry$/.test(title)) return `its title is ${title}`;
	if (/[{[]"|\bundefined\b|\bNaN\b|\[object /.test(text)) return `it shows what is not for people: ${text}`;
	if (!inside || role === 'nobody') return ''; // they lead to the dashboard, or ask for nothing
	const told = alerts.some((a) => a.includes(faults[fault]));
	if (platform && role !== 'a platform admin') return text.includes('For platform admins') ? '' : `it does not say whom it is for: ${text}`;
	if (role === 'somebody without a team' && !platform && path !== '/dashboard/settings') return /You are in no team/i.test(text) ? '' : `it does not say that there is no team: ${text}`;
	if (!told) return `it does not say what failed: ${JSON.stringify(text.slice(0, 300))}`;
	if (!heading && !alerts.length) return 'it has no heading';
	return '';
}
