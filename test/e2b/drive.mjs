// Drives Skerry with a published version of E2B's client as it is: nothing but
// addresses and a key are other than at home. Each step is a line of JSON on standard output;
// the test that started this reads them.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { join } from 'node:path'

const load = createRequire(join(process.env.DRIVE_MODULES, 'drive.js'))
const {
  Sandbox, CommandExitError, TimeoutError, AuthenticationError, SandboxNotFoundError, FileNotFoundError, NotFoundError, SandboxError, Template,
} = load(process.env.DRIVE_PACKAGE)

const steps = []
const step = (name, run) => steps.push({ name, run })
const eventually = async (what, holds, within = 20_000) => {
  for (const until = Date.now() + within; ;) {
    if (await holds()) return
    if (Date.now() > until) throw new Error(`never: ${what}`)
    await new Promise((wake) => setTimeout(wake, 50))
  }
}
const collected = async (paginator) => {
  const all = []
  while (paginator.hasNext) all.push(...(await paginator.nextItems()))
  return all
}
const made = []
const create = async (...args) => {
  const x = await Sandbox.create(...args)
  made.push(x)
  return x
}

let sbx // the one that most steps use
const marks = { run: 'a b&c=d é', plain: 'one' }

step('create', async () => {
  sbx = await create('base', { timeoutMs: 300_000, metadata: marks, envs: { GREETING: 'hello there' } })
  assert.match(sbx.sandboxId, /^[a-z0-9]+$/)
  assert.equal(await sbx.isRunning(), true)
  const shown = await sbx.commands.run('echo $GREETING; whoami; echo $E2B_SANDBOX')
  assert.equal(shown.stdout, 'hello there\nuser\ntrue\n')
})

step('create with the default template and timeout', async () => {
  const x = await create()
  const info = await x.getInfo()
  assert.equal(info.name, 'base')
  const left = info.endAt - Date.now()
  assert.ok(left > 250_000 && left <= 301_000, `ends in ${left} ms`)
  assert.equal(info.lifecycle.onTimeout, 'kill')
  assert.equal(await x.kill(), true)
})

step('create without internet', async () => {
  const x = await create('base', { allowInternetAccess: false, lifecycle: { onTimeout: 'pause', autoResume: true } })
  const info = await x.getInfo()
  assert.equal(info.allowInternetAccess, false)
  assert.deepEqual(info.lifecycle, { onTimeout: 'pause', autoResume: true })
  await x.kill()
})

step('create: failures', async () => {
  await assert.rejects(Sandbox.create('there-is-none'), (e) => e instanceof SandboxError && /template 'there-is-none' not found/.test(e.message))
  await assert.rejects(Sandbox.create('base', { timeoutMs: -5000 }), /400/)
  await assert.rejects(Sandbox.create('base', { timeoutMs: 1000 * 86_400 * 365 }), /400/)
  await assert.rejects(Sandbox.create('base', { apiKey: 'e2b_' + '0'.repeat(40) }), (e) => e instanceof AuthenticationError)
  await assert.rejects(Sandbox.create('base', { network: { allowOut: ['1.1.1.1'] } }), /400/)
})

step('get info', async () => {
  const info = await sbx.getInfo()
  assert.equal(info.sandboxId, sbx.sandboxId)
  assert.equal(info.state, 'running')
  assert.deepEqual(info.metadata, marks)
  assert.ok(info.cpuCount >= 1 && info.memoryMB >= 64)
  assert.ok(Date.now() - info.startedAt < 120_000)
  await assert.rejects(Sandbox.getInfo('i' + '0'.repeat(25)), (e) => e instanceof SandboxNotFoundError)
  await assert.rejects(Sandbox.getInfo('nonsense'), (e) => e instanceof SandboxNotFoundError)
  await assert.rejects(Sandbox.getInfo(sbx.sandboxId, { apiKey: process.env.DRIVE_STRANGER }), (e) => e instanceof SandboxNotFoundError)
})

step('the same 40 digits behind the other prefix', async () => {
  const apiKey = process.env.E2B_API_KEY.replace(/^e2b_/, 'skerry_')
  assert.equal((await Sandbox.getInfo(sbx.sandboxId, { apiKey, validateApiKey: false })).sandboxId, sbx.sandboxId)
})

step('list', async () => {
  const others = [await create('base', { metadata: { plain: 'two' } }), await create('base', { metadata: { plain: 'two' } })]
  const all = (await collected(Sandbox.list())).map((x) => x.sandboxId)
  for (const x of [sbx, ...others]) assert.ok(all.includes(x.sandboxId))
  const found = await collected(Sandbox.list({ query: { metadata: marks } }))
  assert.deepEqual(found.map((x) => x.sandboxId), [sbx.sandboxId])
  assert.deepEqual(await collected(Sandbox.list({ query: { metadata: { plain: 'three' } } })), [])
  const one = Sandbox.list({ limit: 1, query: { metadata: { plain: 'two' } } })
  const [newest] = await one.nextItems()
  assert.equal(newest.sandboxId, others[1].sandboxId)
  assert.equal(one.hasNext, true)
  const [older] = await one.nextItems()
  assert.equal(older.sandboxId, others[0].sandboxId)
  assert.equal(one.hasNext, false)
  const late = await collected(Sandbox.list({ query: { startedAfter: newest.startedAt } }))
  assert.deepEqual(late.map((x) => x.sandboxId), [others[1].sandboxId])
  const turned = await collected(Sandbox.list({ limit: 1, order: 'asc', query: { metadata: { plain: 'two' } } }))
  assert.deepEqual(turned.map((x) => x.sandboxId).sort(), others.map((x) => x.sandboxId).sort())
  assert.deepEqual(await collected(Sandbox.list({ query: { state: ['paused'] } })), [])
  assert.equal((await collected(Sandbox.list({ query: { template: 'base' } }))).length, all.length)
  assert.deepEqual(await collected(Sandbox.list({ query: { template: 'none' } })), [])
  assert.deepEqual(await collected(Sandbox.list({ apiKey: process.env.DRIVE_STRANGER })), [])
  await assert.rejects(collected(Sandbox.list({ limit: 1000 })), /400/)
  await assert.rejects(collected(Sandbox.list({ nextToken: '!' })), /400/)
  await Promise.all(others.map((x) => x.kill()))
})

step('connect', async () => {
  const again = await Sandbox.connect(sbx.sandboxId)
  assert.equal((await again.commands.run('echo $GREETING')).stdout, 'hello there\n')
  const before = (await sbx.getInfo()).endAt
  await Sandbox.connect(sbx.sandboxId, { timeoutMs: 10_000 })
  assert.equal(+(await sbx.getInfo()).endAt, +before, 'a connect brought the deadline forward')
  await Sandbox.connect(sbx.sandboxId, { timeoutMs: 900_000 })
  assert.ok((await sbx.getInfo()).endAt - before > 500_000)
  await assert.rejects(Sandbox.connect('i' + '0'.repeat(25)), (e) => e instanceof SandboxNotFoundError)
  await assert.rejects(Sandbox.connect(sbx.sandboxId, { apiKey: process.env.DRIVE_STRANGER }), (e) => e instanceof SandboxNotFoundError)
})

step('commands: foreground', async () => {
  let out = ''
  const said = await sbx.commands.run('printf "a\\nb"; printf c >&2; pwd', { cwd: '/tmp', envs: { X: '1' }, onStdout: (s) => { out += s } })
  assert.equal(said.stdout, 'a\nb/tmp\n')
  assert.equal(said.stderr, 'c')
  assert.equal(out, said.stdout)
  await assert.rejects(sbx.commands.run('echo no >&2; exit 3'), (e) => e instanceof CommandExitError && e.exitCode === 3 && e.stderr === 'no\n')
  assert.equal((await sbx.commands.run('id -un', { user: 'root' })).stdout, 'root\n')
  await assert.rejects(sbx.commands.run('true', { cwd: '/not/there' }), /does not exist/)
  await assert.rejects(sbx.commands.run('sleep 60', { timeoutMs: 500 }), (e) => e instanceof TimeoutError)
})

step('commands: background, list, connect, kill', async () => {
  const running = await sbx.commands.run('echo up; sleep 300', { background: true, timeoutMs: 0 })
  const list = await sbx.commands.list()
  assert.ok(list.some((p) => p.pid === running.pid))
  await running.disconnect()
  const joined = await sbx.commands.connect(running.pid, { timeoutMs: 0 })
  assert.equal(await sbx.commands.kill(running.pid), true)
  await assert.rejects(joined.wait(), (e) => e instanceof CommandExitError && /killed/.test(e.error ?? ''))
  assert.equal(await sbx.commands.kill(running.pid), false)
  await assert.rejects(sbx.commands.connect(999_999), (e) => e instanceof NotFoundError)
})

step('commands: stdin', async () => {
  const reader = await sbx.commands.run('read line; echo "got $line"; cat', { background: true, stdin: true })
  await sbx.commands.sendStdin(reader.pid, 'one\ntwo\n')
  await eventually('the lines came back', () => reader.stdout === 'got one\ntwo\n')
  await sbx.commands.closeStdin(reader.pid)
  assert.equal((await reader.wait()).exitCode, 0)
  assert.equal((await sbx.commands.run('cat')).stdout, '', 'nothing is on the input of a command that wants none')
})

step('pty', async () => {
  let shown = ''
  const pty = await sbx.pty.create({ cols: 80, rows: 24, timeoutMs: 0, onData: (bytes) => { shown += new TextDecoder().decode(bytes) } })
  const type = (s) => sbx.pty.sendInput(pty.pid, new TextEncoder().encode(s))
  await type('stty size; echo $((40+2))\n')
  await eventually('its size', () => shown.includes('24 80') && shown.includes('42'))
  await sbx.pty.resize(pty.pid, { cols: 101, rows: 31 })
  await type('stty size\n')
  await eventually('its new size', () => shown.includes('31 101'))
  assert.equal(await sbx.pty.kill(pty.pid), true)
  await assert.rejects(pty.wait())
})

step('files: read, write, list', async () => {
  await sbx.files.write('/home/user/d/a b é.txt', 'text é')
  assert.equal(await sbx.files.read('d/a b é.txt'), 'text é')
  await sbx.files.write('empty', '')
  assert.equal(await sbx.files.read('empty'), '')
  const big = new Uint8Array(3 << 20).map((_, i) => i * 7)
  await sbx.files.write('big', new Blob([big]))
  assert.deepEqual(Buffer.compare(await sbx.files.read('big', { format: 'bytes' }), big), 0)
  await sbx.files.write([{ path: 'm/1', data: '1' }, { path: 'm/2', data: '2' }])
  assert.deepEqual((await sbx.files.list('m')).map((e) => [e.name, e.type]), [['1', 'file'], ['2', 'file']])
  assert.equal(await sbx.files.makeDir('new'), true)
  assert.equal(await sbx.files.makeDir('new'), false)
  assert.equal(await sbx.files.exists('m/1'), true)
  await sbx.files.rename('m/1', 'n/1')
  assert.equal(await sbx.files.exists('m/1'), false)
  const info = await sbx.files.getInfo('n/1')
  assert.equal(info.size, 1)
  assert.equal(info.owner, 'user')
  await sbx.files.remove('n')
  await assert.rejects(sbx.files.read('n/1'), (e) => e instanceof FileNotFoundError)
  await assert.rejects(sbx.files.list('n'), (e) => e instanceof FileNotFoundError)
})

step('files: watch', async () => {
  await sbx.files.makeDir('watched')
  const events = []
  const watch = await sbx.files.watchDir('watched', (e) => { events.push(`${e.type} ${e.name}`) }, { recursive: true })
  await sbx.files.write('watched/f', '1')
  await eventually('it was written', () => events.includes('create f') && events.includes('write f'))
  await sbx.files.remove('watched/f')
  await eventually('it was removed', () => events.includes('remove f'))
  await watch.stop()
  await assert.rejects(sbx.files.watchDir('nowhere', () => {}), (e) => e instanceof FileNotFoundError)
})

step('files: metadata', async () => {
  await sbx.files.write('marked', 'x', { metadata: { kind: 'note' } })
  assert.deepEqual((await sbx.files.getInfo('marked')).metadata, { kind: 'note' })
})

step('files: signed links', async () => {
  await sbx.files.write('linked', 'by a link')
  const link = await sbx.downloadUrl('linked', { useSignatureExpiration: 60 })
  const at = (url) => fetch(url, { headers: { 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': '49983' } })
  const answer = await at(link)
  assert.equal(answer.status, 200)
  assert.equal(await answer.text(), 'by a link')
  assert.equal((await at(link.replace('linked', 'others'))).status, 401)
})

step('no token, no daemon', async () => {
  const url = `${process.env.E2B_SANDBOX_URL}/files?path=linked`
  const named = { 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': '49983' }
  assert.ok([401, 403].includes((await fetch(url, { headers: named })).status))
  assert.ok([401, 403].includes((await fetch(url, { headers: { ...named, 'X-Access-Token': 'guess' } })).status))
})

step('a port, with the traffic token', async () => {
  await sbx.commands.run('mkdir -p www && echo served > www/index.html')
  await sbx.commands.run('cd www && exec python3 -m http.server 8000 --bind 127.0.0.1', { background: true, timeoutMs: 0 })
  assert.ok(sbx.getHost(8000).startsWith(`8000-${sbx.sandboxId}.`))
  const headers = { 'E2b-Sandbox-Id': sbx.sandboxId, 'E2b-Sandbox-Port': '8000' }
  let text
  await eventually('it serves', async () => {
    const answer = await fetch(process.env.E2B_SANDBOX_URL, { headers: { ...headers, 'E2b-Traffic-Access-Token': sbx.trafficAccessToken } })
    text = await answer.text()
    return answer.status === 200
  })
  assert.equal(text, 'served\n')
  assert.equal((await fetch(process.env.E2B_SANDBOX_URL, { headers })).status, 403)
})

step('timeouts', async () => {
  const x = await create('base', { timeoutMs: 300_000 })
  await x.setTimeout(60_000)
  const left = (await x.getInfo()).endAt - Date.now()
  assert.ok(left > 50_000 && left <= 61_000, `ends in ${left} ms`)
  await x.setTimeout(1000)
  await eventually('it ended', async () => !(await x.isRunning()))
  await assert.rejects(x.getInfo(), (e) => e instanceof SandboxNotFoundError)
  await assert.rejects(x.setTimeout(60_000), (e) => e instanceof SandboxNotFoundError)
  await assert.rejects(Sandbox.setTimeout(sbx.sandboxId, 60_000, { apiKey: process.env.DRIVE_STRANGER }), (e) => e instanceof SandboxNotFoundError)
  await assert.rejects(x.commands.run('true'), (e) => e instanceof TimeoutError || e instanceof SandboxError)
  assert.equal(await x.kill(), false)
})

step('pause and resume, with memory', async () => {
  const counter = await sbx.commands.run('i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done', { background: true, timeoutMs: 0 })
  await sbx.files.write('kept', 'on disk')
  const { envdAccessToken: before } = sbx
  assert.equal(await sbx.pause(), true)
  assert.equal(await sbx.pause(), false)
  assert.equal((await sbx.getInfo()).state, 'paused')
  assert.equal(await sbx.isRunning(), false)
  assert.deepEqual((await collected(Sandbox.list({ query: { state: ['paused'] } }))).map((x) => x.sandboxId), [sbx.sandboxId])
  const again = await Sandbox.connect(sbx.sandboxId, { timeoutMs: 300_000 })
  assert.equal(again.envdAccessToken, before)
  assert.equal((await sbx.getInfo()).state, 'running')
  assert.equal(await again.files.read('kept'), 'on disk')
  assert.ok((await again.commands.list()).some((p) => p.pid === counter.pid), 'a process did not live on')
  const count = async () => Number(await again.files.read('/tmp/count'))
  const then = await count()
  await eventually('it counts on', async () => (await count()) > then)
  await again.commands.kill(counter.pid)
  await assert.rejects(Sandbox.pause('i' + '0'.repeat(25)), (e) => e instanceof SandboxNotFoundError)
  await assert.rejects(Sandbox.pause(sbx.sandboxId, { apiKey: process.env.DRIVE_STRANGER }), (e) => e instanceof SandboxNotFoundError)
})

step('pause and resume, from disk', async () => {
  const x = await create('base')
  await x.files.write('kept', 'yes')
  await x.commands.run('sleep 300', { background: true, timeoutMs: 0 })
  await x.pause({ keepMemory: false })
  const again = await x.connect()
  assert.equal(await again.files.read('kept'), 'yes')
  assert.equal((await again.commands.run('pgrep -c sleep || true')).stdout, '0\n')
  await again.kill()
})

step('metrics', async () => {
  let points = []
  await eventually('a point', async () => (points = await sbx.getMetrics()).length > 0)
  const last = points.at(-1)
  assert.ok(last.memUsed > 0 && last.memTotal >= last.memUsed && last.diskTotal > 0 && last.cpuCount >= 1)
  assert.deepEqual(await sbx.getMetrics({ end: new Date(Date.now() - 86_400_000) }), [])
  await assert.rejects(Sandbox.getMetrics('i' + '0'.repeat(25)), (e) => e instanceof SandboxNotFoundError)
})

step('snapshots', async () => {
  await sbx.files.write('saved', 'then')
  const shot = await sbx.createSnapshot({ name: 'drive' })
  const other = await sbx.createSnapshot()
  assert.equal(await sbx.isRunning(), true)
  await sbx.files.write('saved', 'now')
  const x = await create(shot.snapshotId)
  assert.equal(await x.files.read('saved'), 'then')
  await x.kill()
  const ids = (await collected(Sandbox.listSnapshots({ sandboxId: sbx.sandboxId }))).map((s) => s.snapshotId).sort()
  assert.deepEqual(ids, [shot.snapshotId, other.snapshotId].sort())
  await assert.rejects(sbx.createSnapshot({ name: 'drive' }), /409/)
  for (const s of [shot, other]) assert.equal(await Sandbox.deleteSnapshot(s.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(shot.snapshotId), false)
  await assert.rejects(Sandbox.createSnapshot('i' + '0'.repeat(25)), (e) => e instanceof SandboxNotFoundError)
})

step('fork', async () => {
  await sbx.files.write('forked', 'from here')
  const copies = await sbx.fork({ count: 2, timeoutMs: 60_000 })
  for (const x of copies) {
    assert.ok(!(x instanceof Error), String(x))
    made.push(x)
    assert.notEqual(x.sandboxId, sbx.sandboxId)
    assert.equal(await x.files.read('forked'), 'from here')
    await x.kill()
  }
})

step('templates', async () => {
  assert.equal(await Template.exists('base'), true)
  assert.equal(await Template.exists('there-is-none'), false)
})

step('kill', async () => {
  const paused = await create('base')
  await paused.pause()
  assert.equal(await paused.kill(), true)
  assert.equal(await Sandbox.kill(sbx.sandboxId, { apiKey: process.env.DRIVE_STRANGER }), false)
  assert.equal(await sbx.isRunning(), true)
  assert.equal(await sbx.kill(), true)
  assert.equal(await sbx.isRunning(), false)
  assert.equal(await sbx.kill(), false)
  assert.equal(await Sandbox.kill('nonsense'), false)
})

const only = process.env.DRIVE_ONLY ? new RegExp(process.env.DRIVE_ONLY) : null
for (const { name, run } of steps) {
  if (only && !only.test(name)) continue
  const began = Date.now()
  let error
  try {
    await run()
  } catch (e) {
    error = e?.stack ?? String(e)
  }
  process.stdout.write(JSON.stringify({ name, error, ms: Date.now() - began }) + '\n')
  if (error && name === 'create') break
}
await Promise.allSettled(made.map((x) => x.kill()))
process.exit(0)
