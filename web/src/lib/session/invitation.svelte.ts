import { takeSecret } from '$lib/query';

/**
 * The invitation that this browser was opened with, from its link until it is
 * accepted or put away: over sign-up and login, in memory alone.
 */
class Invitation {
	token = $state('');
	/** It is accepted as soon as somebody is logged in. */
	sure = false;

	/** Takes it from the address, where one stands. */
	read(): void {
		const token = takeSecret('invitation');
		if (!token) return;
		this.token = token;
		this.sure = false;
	}

	drop(): void {
		this.token = '';
		this.sure = false;
	}
}

export const invitation = new Invitation();
