import type { Schemas } from '$api/client';
import { words } from '$lib/format';

type Entry = Schemas['AuditLog'];

/** What each action is in a sentence: "Ada <verb> <object>". */
const verbs: Record<string, string> = {
	'sandbox.create': 'started a sandbox', 'sandbox.destroy': 'deleted a sandbox', 'sandbox.pause': 'paused a sandbox', 'sandbox.resume': 'resumed a sandbox',
	'sandbox.auto_pause': 'paused a sandbox by itself', 'sandbox.fork': 'copied a sandbox', 'sandbox.recover': 'recovered a sandbox',
	'snapshot.create': 'saved the snapshot', 'snapshot.delete': 'deleted the snapshot',
	'template.build': 'built the template', 'template.delete': 'deleted the template',
	'build.create': 'began to build', 'build.cancel': 'ended the build of', 'build.end': 'is done with the build of',
	'team.create': 'made the team', 'team.rename': 'renamed the team', 'team.delete': 'deleted the team', 'team.transfer': 'handed the team over',
	'team.byoc_enable': 'let the team bring its own hosts', 'team.byoc_disable': 'no longer lets the team bring its own hosts',
	'team.limits_update': 'changed the limits of the team',
	'api_key.create': 'made the key', 'api_key.revoke': 'revoked the key',
	'member.add': 'added', 'member.remove': 'removed', 'member.leave': 'left the team', 'member.role_update': 'changed the role of',
	'invitation.create': 'made an invitation', 'invitation.accept': 'accepted an invitation', 'invitation.revoke': 'withdrew an invitation',
	'host.create': 'announced the host', 'host.register': 'registered a host', 'host.delete': 'deleted a host', 'host.update': 'changed a host',
	'host.drain': 'began to drain a host', 'host.undrain': 'put a host back into service', 'host.token_issue': 'issued a token for a host',
	'host.marked_down': 'found a host out of reach', 'host.marked_up': 'found a host in reach again', 'host.token_reuse': 'saw a stolen token of a host used',
	'host.claims_more': 'saw a host claim sandboxes that are not its own',
	'session.login': 'logged in', 'session.login_failed': 'could not log in', 'session.logout': 'logged out',
	'session.switch_team': 'began to work in this team', 'session.end': 'ended a session', 'session.token_reuse': 'saw a stolen session used',
	'user.create': 'signed up', 'user.password_change': 'changed the password', 'user.password_reset': 'made a link to reset the password of',
	'user.password_change_failed': 'could not change the password', 'user.password_link_issue': 'made a link to a new password for',
	'user.password_link_send': 'sent a link to a new password to', 'user.password_link_use': 'set a new password by a link',
	'user.email_link_send': 'sent a letter to prove an address', 'user.email_prove': 'proved the address', 'user.rename': 'took another name',
	'user.identity_link': 'linked another way to log in', 'user.identity_unlink': 'unlinked a way to log in',
	'user.enable': 'let in again', 'user.disable': 'locked out', 'user.delete': 'deleted the account',
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
