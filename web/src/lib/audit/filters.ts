import { query } from '$lib/query';

const several = (name: string) => query(name).split(',').map((v) => v.trim()).filter(Boolean);

/** What the address asks for, as the API takes it. */
export function filters(): { resource_type?: string[]; action?: string[] } {
	const resource_type = several('resource');
	const action = several('action');
	return { ...(resource_type.length ? { resource_type } : {}), ...(action.length ? { action } : {}) };
}
