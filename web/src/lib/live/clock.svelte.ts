import { createSubscriber } from 'svelte/reactivity';

/** The time as relative times are shown against; moves while somebody looks. */
class Clock {
	#subscribe = createSubscriber((update) => {
		const timer = setInterval(update, 10_000);
		return () => clearInterval(timer);
	});

	get now(): Date {
		this.#subscribe();
		return new Date();
	}
}

export const clock = new Clock();
