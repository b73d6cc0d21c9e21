// The terminal: much output, other sizes, cut lines, silence.
import assert from 'node:assert/strict';
import { prompt, screen, seen, type } from './lib/page.mjs';
import { until } from './lib/world.mjs';

export default async function (t, world) {
	const me = await world.signUp('Terry Terminal');
	const box = await world.create(me, 'talkative');
	const page = await world.enter(me, `/dashboard/sandboxes/${box.id}`);
	await prompt(page);

	await t.step('ten megabytes of output', async () => {
		// Each line says its number, so that a lost or doubled one is seen.
		await world.sh(me, box.id, `seq -f '%099.0f' 1 100000 >/tmp/much`);
		const began = Date.now();
		await type(page, `cat /tmp/much; echo "the en""d"`, /^the end$/m);
		t.log(`10 MB in ${Date.now() - began} ms`);
		const last = (await screen(page)).split('\n').filter((l) => /^0\d{98}$/.test(l.trim())).map(Number);
		assert.equal(last.at(-1), 100000);
		assert.deepEqual(last, Array.from({ length: last.length }, (_, i) => 100000 - last.length + 1 + i));
		// The tab lives: it answers at once.
		const frame = await page.evaluate(() => new Promise((done) => { const t = performance.now(); requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - t))); }));
		assert.ok(frame < 1000, `a frame takes ${frame} ms`);
		await type(page, 'clear; echo $((1+1))-still', '2-still');
	});

	await t.step('its size is the size of the page', async () => {
		let asked = 0;
		const size = async () => {
			await type(page, `clear; stty size | tr " " x | sed "s/^/size-${++asked}-/"`, new RegExp(`size-${asked}-\\d+x\\d+`));
			const [, rows, cols] = (await until('the size', async () => new RegExp(`size-${asked}-(\\d+)x(\\d+)`).exec(await screen(page)))).map(Number);
			return { rows, cols, drawn: await page.getByTestId('terminal').locator('.xterm-rows > div').count() };
		};
		const before = await size();
		assert.equal(before.rows, before.drawn);
		await page.setViewportSize({ width: 900, height: 600 });
		const after = await until('the new size', async () => {
			const now = await size();
			return now.rows !== before.rows && now.cols < before.cols && now.rows === now.drawn && now;
		});
		t.log(`${before.cols}×${before.rows}, then ${after.cols}×${after.rows}`);
		await page.setViewportSize({ width: 1280, height: 800 });
		await until('the old size', async () => (await size()).cols === before.cols);
	});

	await t.step('a line that is cut loses nothing', async () => {
		await type(page, 'clear; for i in $(seq 1 30); do echo tick-$i; sleep 0.1; done', 'tick-3');
		world.expect(0, /./);
		await t.ask('down');
		await seen(page.getByText('Connecting again'));
		await t.ask('up');
		await until('all of it', async () => (await screen(page)).includes('tick-30'));
		const ticks = [...(await screen(page)).matchAll(/tick-(\d+)/g)].map((m) => Number(m[1])).filter((n, i, all) => !(i === 0 && n === all[1]));
		assert.deepEqual(ticks, Array.from({ length: 30 }, (_, i) => i + 1));
		assert.equal(await page.getByText('Connecting again').count(), 0);
		// It is the same shell, and it still listens.
		await type(page, 'clear; echo $((3*3))-same', '9-same');
		// What the browser says of connections that were cut is no fault of the page.
		const others = world.takeFaults().filter((f) => !/WebSocket connection to|net::ERR_|ERR_EMPTY_RESPONSE/.test(f));
		assert.deepEqual(others, []);
	});

	if (world.long) {
		await t.step('seventy seconds of silence', async () => {
			await type(page, 'clear; mine=kept; echo ready', 'ready');
			await new Promise((done) => setTimeout(done, 70_000));
			await type(page, 'echo "$mine-on"', 'kept-on');
		});
	}

	await t.step('the shell ends, and another one is opened', async () => {
		await type(page, 'exit 3', 'exit');
		await seen(page.getByText('The shell ended with status 3.'));
		await page.getByRole('button', { name: 'Open another one' }).click();
		await prompt(page);
		await type(page, 'echo $((5*5))-anew', '25-anew');
	});

	await page.close();
	await world.api(me, 'DELETE', `/v1/sandboxes/${box.id}`);
}
