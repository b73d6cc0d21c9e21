import createClient, { type Middleware } from 'openapi-fetch';
import type { components, paths } from './schema';

export type Schemas = components['schemas'];

/** What the API says when it refuses something. */
export class ApiError extends Error {
	constructor(
		readonly status: number,
		readonly code: string,
		message: string,
		readonly details: Readonly<Record<string, unknown>> = {},
		readonly requestId = ''
	) {
		super(message);
		this.name = 'ApiError';
	}

	/** Whether it may go away by itself. */
	get passing(): boolean {
		return this.status === 0 || this.status === 429 || this.status >= 500;
	}
}

/** Who gives tokens, and is told that one was refused. */
export interface Credentials {
	/** A token that is good now; empty for nobody. */
	token(): Promise<string>;
	/** The token was refused: another one, or empty when the session is over. */
	renew(refused: string): Promise<string>;
}

let credentials: Credentials = { token: async () => '', renew: async () => '' };

export function useCredentials(c: Credentials): void {
	credentials = c;
}

/** A token that is good now; another one when it was refused. Empty for nobody. */
export function credential(refused: string): Promise<string> {
	return refused ? credentials.renew(refused) : credentials.token();
}

/** fetch with the session's token, which is renewed once when it is refused. */
export async function authorized(input: string | Request, init?: RequestInit): Promise<Response> {
	const request = new Request(input, init);
	const again = request.clone();
	const token = await credentials.token();
	if (token) request.headers.set('Authorization', `Bearer ${token}`);
	const response = await send(request);
	if (response.status !== 401 || !token) return response;
	const next = await credentials.renew(token);
	if (!next) return response;
	again.headers.set('Authorization', `Bearer ${next}`);
	return send(again);
}

/** A browser drops what is under way when any network of its machine changes, as the start of a sandbox there does: reading is simply tried again. */
const tries = 3;

async function send(request: Request): Promise<Response> {
	for (let n = 1; ; n++) {
		try {
			return await fetch(request.method === 'GET' ? request.clone() : request);
		} catch (e) {
			if (e instanceof DOMException && e.name === 'AbortError') throw e;
			if (request.method !== 'GET' || n === tries) {
				throw new ApiError(0, 'offline', 'Skerry cannot be reached. Check the connection and try again.');
			}
			await new Promise((done) => setTimeout(done, 150 * n));
		}
	}
}

/** How far an upload is. */
export interface Sent {
	done: number;
	total: number;
}

/** Sends a file of any size, which the browser reads as it goes, and tells how far it is. Done and refused as by fetch. */
export async function upload(method: 'PUT' | 'POST', url: string, file: Blob, on: (sent: Sent) => void, signal: AbortSignal, type = 'application/octet-stream'): Promise<Response> {
	const token = await credentials.token();
	const response = await put(method, url, file, token, on, signal, type);
	if (response.status !== 401 || !token) return response;
	const next = await credentials.renew(token);
	return next ? put(method, url, file, next, on, signal, type) : response;
}

function put(method: string, url: string, file: Blob, token: string, on: (sent: Sent) => void, signal: AbortSignal, type: string): Promise<Response> {
	return new Promise((resolve, reject) => {
		const canceled = () => reject(new DOMException('Canceled.', 'AbortError'));
		if (signal.aborted) return canceled();
		const request = new XMLHttpRequest(); // fetch does not tell how far it is
		const stop = () => request.abort();
		signal.addEventListener('abort', stop, { once: true });
		request.open(method, url);
		request.setRequestHeader('Content-Type', type);
		if (token) request.setRequestHeader('Authorization', `Bearer ${token}`);
		request.upload.onprogress = (e) => on({ done: e.loaded, total: file.size });
		request.onload = () => resolve(new Response(request.status === 204 ? null : request.responseText, { status: request.status }));
		request.onerror = () => reject(new ApiError(0, 'offline', 'The upload was cut off. Check the connection and try again.'));
		request.onabort = canceled;
		request.onloadend = () => signal.removeEventListener('abort', stop);
		request.send(file);
	});
}

/** The refusal in a response. */
export async function refusal(response: Response): Promise<ApiError> {
	let body: Partial<Schemas['Error']> = {};
	try {
		body = await response.json();
	} catch {
		// not JSON: a proxy's page, most likely
	}
	const e = body.error;
	return new ApiError(
		response.status,
		e?.code ?? 'unknown',
		e?.message ?? `The server answered with status ${response.status}.`,
		e?.details ?? {},
		e?.request_id ?? ''
	);
}

const throwing: Middleware = {
	async onResponse({ response }) {
		if (!response.ok) throw await refusal(response);
	}
};

const client = createClient<paths>({ baseUrl: '', fetch: (request) => authorized(request) });
client.use(throwing);

/** The API. Calls return data, or throw an ApiError. */
export const api = client;

/** The data of a call; an answer without a body is undefined. */
export async function data<T>(call: Promise<{ data?: T }>): Promise<T> {
	return (await call).data as T;
}

/** A key for a POST that may have to be sent twice. */
export function idempotent(): { 'Idempotency-Key': string } {
	// randomUUID is there by HTTPS alone.
	const random = crypto.getRandomValues(new Uint8Array(16));
	return { 'Idempotency-Key': Array.from(random, (b) => b.toString(16).padStart(2, '0')).join('') };
}
