import { api, data, idempotent, type Schemas } from '$api/client';

export type Sandbox = Schemas['Sandbox'];

const at = (id: string) => ({ params: { path: { id } } });

export const pause = (id: string, body: Schemas['PauseSandboxRequest'] = {}) => data(api.POST('/v1/sandboxes/{id}/pause', { ...at(id), body }));
export const resume = (id: string, body: Schemas['ResumeSandboxRequest'] = {}) => data(api.POST('/v1/sandboxes/{id}/resume', { ...at(id), body }));
export const recover = (id: string) => data(api.POST('/v1/sandboxes/{id}/recover', at(id)));
export const extend = (id: string, timeout_sec: number) => data(api.POST('/v1/sandboxes/{id}/timeout', { ...at(id), body: { timeout_sec } }));
export const destroy = (id: string) => data(api.DELETE('/v1/sandboxes/{id}', at(id)));
export const fork = (id: string, count = 1) =>
	data(api.POST('/v1/sandboxes/{id}/fork', { params: { path: { id }, header: idempotent() }, body: { count } }));
export const snapshot = (sandbox_id: string, name: string, how: { memory?: boolean; overwrite?: boolean } = {}) =>
	data(api.POST('/v1/snapshots', { params: { header: idempotent() }, body: { sandbox_id, name, ...how } }));

/** What a sandbox is called by people: its name in the metadata, or its id. */
export function nameOf(x: Sandbox): string {
	return x.metadata['name'] || x.id;
}
