'use strict';

// The page holds the session's token here and nowhere else.
let token = '';
let api = null;
const operations = new Map();

const at = (id) => document.getElementById(id);
const say = (id, text) => { at(id).textContent = text; };

// resolve follows one $ref of the document.
function resolve(node) {
  if (!node || !node.$ref) return node;
  return node.$ref.slice(2).split('/').reduce((found, part) => found[part], api);
}

// example makes a body to start from: the required fields of a schema.
function example(schema, depth = 0) {
  schema = resolve(schema) || {};
  if (schema.enum) return schema.enum[0];
  if (schema.type === 'object' && depth < 4) {
    const out = {};
    for (const name of schema.required || []) out[name] = example((schema.properties || {})[name], depth + 1);
    return out;
  }
  return { array: [], integer: 0, number: 0, boolean: false, object: {} }[schema.type] ?? '';
}

function bodySchema(operation) {
  return operation.requestBody?.content?.['application/json']?.schema;
}

function credentials() {
  const as = at('sendas').value;
  if (as === 'token' && token) return { Authorization: 'Bearer ' + token };
  if (as === 'key' && at('apikey').value) return { 'X-API-Key': at('apikey').value.trim() };
  return {};
}

async function call(method, path, headers, body) {
  const started = performance.now();
  const response = await fetch(path, { method, headers, body, credentials: 'omit', redirect: 'error' });
  const text = await response.text();
  let value = null;
  try { value = JSON.parse(text); } catch { /* shown as it is */ }
  return { response, text, value, took: Math.round(performance.now() - started) };
}

function show({ response, text, value, took }) {
  say('status', `${response.status} ${response.statusText} in ${took} ms, request ${response.headers.get('X-Request-Id') || 'unknown'}`);
  say('output', value === null ? text : JSON.stringify(value, null, 2));
}

function failed(error) {
  say('status', 'The request could not be sent: ' + error.message);
  say('output', '');
}

async function enter(action) {
  const form = new FormData(at('account'));
  const fields = { email: form.get('email'), password: form.get('password') };
  if (action === 'signup') fields.name = form.get('name');
  const answer = await call('POST', '/v1/auth/' + action, { 'Content-Type': 'application/json' }, JSON.stringify(fields));
  if (answer.value?.token) {
    token = answer.value.token;
    answer.value.token = '(kept in this page)';
    at('newkey').disabled = false;
    at('sendas').value = 'token';
    const team = answer.value.team ? `, team ${answer.value.team.name}` : ', without a team';
    say('state', `Logged in as ${answer.value.user.email}${team}.`);
  }
  show(answer);
}

async function makeKey() {
  const headers = { 'Content-Type': 'application/json', Authorization: 'Bearer ' + token };
  const answer = await call('POST', '/v1/api-keys', headers, JSON.stringify({ name: 'Made on the documentation page' }));
  if (answer.value?.key) {
    at('apikey').value = answer.value.key;
    at('sendas').value = 'key';
    say('state', 'The key is in the field above. It is shown this once.');
  }
  show(answer);
}

function choose() {
  const { method, path, operation } = operations.get(at('operation').value);
  say('summary', [operation.summary, operation.description].filter(Boolean).join('. '));
  const parameters = at('parameters');
  parameters.replaceChildren();
  for (const reference of operation.parameters || []) {
    const parameter = resolve(reference);
    const label = document.createElement('label');
    const name = document.createElement('span');
    name.textContent = `${parameter.name} (${parameter.in})`;
    if (parameter.required) name.className = 'required';
    const input = document.createElement('input');
    input.name = parameter.name;
    input.dataset.in = parameter.in;
    input.required = Boolean(parameter.required);
    const hint = document.createElement('span');
    hint.className = 'hint';
    hint.textContent = parameter.description || '';
    label.append(name, input, hint);
    parameters.append(label);
  }
  const schema = bodySchema(operation);
  at('bodylabel').hidden = !operation.requestBody;
  at('body').value = schema ? JSON.stringify(example(schema), null, 2) : '';
  say('status', `${method} ${path}`);
  say('output', '');
}

async function send() {
  const { method, path, operation } = operations.get(at('operation').value);
  const headers = credentials();
  const query = new URLSearchParams();
  let target = path;
  for (const input of at('parameters').querySelectorAll('input')) {
    if (input.value === '') continue;
    if (input.dataset.in === 'path') target = target.replace(`{${input.name}}`, encodeURIComponent(input.value));
    if (input.dataset.in === 'query') query.append(input.name, input.value);
    if (input.dataset.in === 'header') headers[input.name] = input.value;
  }
  let body;
  if (operation.requestBody) {
    body = at('body').value;
    headers['Content-Type'] = bodySchema(operation) ? 'application/json' : 'application/octet-stream';
  }
  const search = query.toString();
  show(await call(method, search ? `${target}?${search}` : target, headers, body));
}

async function start() {
  api = await (await fetch('/docs/openapi.json')).json();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      if (!operation.operationId) continue;
      operations.set(operation.operationId, { method: method.toUpperCase(), path, operation });
    }
  }
  const groups = new Map();
  for (const [id, { method, path, operation }] of operations) {
    const tag = operation.tags?.[0] || 'other';
    if (!groups.has(tag)) {
      const group = document.createElement('optgroup');
      group.label = tag;
      groups.set(tag, group);
    }
    const option = document.createElement('option');
    option.value = id;
    option.textContent = `${method} ${path}`;
    groups.get(tag).append(option);
  }
  at('operation').replaceChildren(...groups.values());
  at('operation').value = 'getMe';
  choose();
}

at('account').addEventListener('submit', (event) => {
  event.preventDefault();
  enter(event.submitter?.dataset.action || 'login').catch(failed);
});
at('newkey').addEventListener('click', () => makeKey().catch(failed));
at('operation').addEventListener('change', choose);
at('request').addEventListener('submit', (event) => {
  event.preventDefault();
  send().catch(failed);
});
start().catch(failed);
