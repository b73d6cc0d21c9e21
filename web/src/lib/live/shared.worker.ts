import { Hub } from './hub';

const hub = new Hub();
// The types of a page do not know what a worker is.
(self as unknown as { onconnect: (e: MessageEvent) => void }).onconnect = (e) => {
	const port = e.ports[0];
	if (port) hub.connect(port);
};
