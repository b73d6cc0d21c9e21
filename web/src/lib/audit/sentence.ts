import type { Schemas } from '$api/client';
import { words } from '$lib/format';

type Entry = Schemas['AuditLog'];

/** What each action is in a sentence: "Ada <verb> <object>". */
const verbs: Record<string, string> = {
	'sandbox.create': 'started a sandbox', 'sandbox.destroy': 'deleted a sandbox', 'sandbox.pause': 'paused a sandbox', 'sandbox.resume': 'resumed a sandbox',
	'sandbox.auto_pause': 'paused a sandbox by itself', 'sandbox.fork': 'copied a sandbox', 'sandbox.recover': 'recovered a sandbox',
	'snapshot.create': 'saved the snapshot', 'snapshot.delete': 'deleted the snapshot',
	'template.build': 'built the template', 'template.delete': 'deleted the template', 'template.build_cancel': 'ended the build of',
	'team.create': 'made the team', 'team.rename': 'renamed the team', 'team.delete': 'deleted the team', 'team.transfer': 'handed the team over',
	'team.byoc_enable': 'let the team bring its own hosts', 'team.byoc_disable': 'no longer lets the team bring its own hosts',
	'api_key.create': 'made the key', 'api_key.revoke': 'revoked the key',
	'member.add': 'added', 'member.remove': 'removed', 'member.leave': 'left the team', 'member.role_update': 'changed the role of',
	'host.create': 'announced the host', 'host.register': 'registered a host', 'host.delete': 'deleted a host', 'host.update': 'changed a host',
	'host.drain': 'began to drain a host', 'host.undrain': 'put a host back into service', 'host.token_issue': 'issued a token for a host',
	'host.marked_down': 'found a host out of reach', 'host.marked_up': 'found a host in reach again', 'host.token_reuse': 'saw a stolen token of a host used',
	'session.login': 'logged in', 'session.login_failed': 'could not log in', 'session.logout': 'logged out',
	'user.create': 'signed up', 'user.password_change': 'changed the password', 'user.password_reset': 'made a link to reset the password of',
	'user.admin_grant': 'made a platform admin of', 'user.admin_revoke': 'took the platform admin away from',
	'audit.prune': 'removed entries that were older than is kept'
};

/** One line that a person understands. */
export function sentence(e: Entry): string {
	const who = e.actor.type === 'system' ? 'Skerry' : e.actor.name || words(e.actor.type);
	const object = e.metadata['name'] ?? e.metadata['email'] ?? '';
	if (e.action === 'refused') return `${who} was refused: ${words(e.resource_type)}`;
	const verb = verbs[`${e.resource_type}.${e.action}`] ?? `${e.action.replaceAll('_', ' ')} (${e.resource_type.replaceAll('_', ' ')})`;
	return [who, verb, typeof object === 'string' ? object : ''].filter(Boolean).join(' ');
}

export const resources = ['sandbox', 'snapshot', 'template', 'team', 'member', 'api_key', 'host', 'session', 'user', 'audit'] as const;
