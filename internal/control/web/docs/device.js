'use strict';

// The page holds the session's token here and nowhere else.
let token = '';
const at = (id) => document.getElementById(id);
const say = (text) => { at('state').textContent = text; };
const show = (id, visible) => { at(id).hidden = !visible; };

async function call(method, path, body) {
  const headers = {};
  if (token) headers.Authorization = 'Bearer ' + token;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (path === '/v1/auth/refresh') headers['X-Skerry-Refresh'] = '1';
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), credentials: 'same-origin', redirect: 'error' });
  const text = await response.text();
  const value = text ? JSON.parse(text) : null;
  if (!response.ok) throw new Error(value?.error?.message || `The server answered ${response.status}. Try again.`);
  return value;
}

// run does something that may fail, and says why when it does.
const run = (work) => async (event) => {
  event?.preventDefault();
  say('One moment…');
  try {
    await work(event);
  } catch (error) {
    say(error.message);
  }
};

// shown is the code whose program the page describes: what is decided is that,
// whatever stands in the field by then.
let shown = '';
const code = () => at('usercode').value.trim().toUpperCase();

async function askToLogIn() {
  const ways = await call('GET', '/v1/auth/providers');
  show('password', ways.password);
  for (const way of ways.providers) {
    const link = document.createElement('a');
    link.className = 'button';
    link.href = way.url + '?device=' + encodeURIComponent(code());
    link.textContent = 'Log in with ' + way.name;
    at('providers').append(link);
  }
  show('enter', true);
  say('');
}

async function loggedIn(auth) {
  token = auth.token;
  at('me').textContent = `${auth.user.name} (${auth.user.email})`;
  show('enter', false);
  show('ask', true);
  if (code()) await lookUp(); else say('');
}

async function lookUp() {
  show('about', false);
  show('decide', false);
  const wanted = code();
  const asked = await call('GET', '/v1/auth/device/' + encodeURIComponent(wanted));
  if (wanted !== code()) { say('The code has changed. Look it up again.'); return; }
  shown = asked.user_code;
  at('client').textContent = asked.client_name || 'unknown';
  at('from').textContent = asked.ip || 'unknown';
  at('when').textContent = new Date(asked.created_at).toLocaleString();
  show('about', true);
  show('decide', true);
  say('Allow it only if you started this yourself, just now.');
}

async function decide(approve) {
  await call('POST', '/v1/auth/device/' + encodeURIComponent(shown), { approve });
  show('ask', false);
  say(approve ? 'It is let in. You can close this page.' : 'It was refused. You can close this page.');
}

at('password').addEventListener('submit', run(async () => {
  const form = new FormData(at('password'));
  await loggedIn(await call('POST', '/v1/auth/login', { email: form.get('email'), password: form.get('password') }));
}));
at('code').addEventListener('submit', run(lookUp));
at('usercode').addEventListener('input', () => { show('about', false); show('decide', false); });
at('approve').addEventListener('click', run(() => decide(true)));
at('deny').addEventListener('click', run(() => decide(false)));

run(async () => {
  at('usercode').value = new URLSearchParams(location.search).get('code') || '';
  let auth = null;
  try {
    auth = await call('POST', '/v1/auth/refresh');
  } catch { /* nobody is logged in here */ }
  if (auth) await loggedIn(auth); else await askToLogIn();
})();
